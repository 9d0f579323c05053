package explain

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/config"
	"kthwd/appliance/program"
	"kthwd/test/harness"
)

// fixed is a controller that is the same on every machine, with flags of its user's.
func fixed(profile string) Input {
	c := config.Default().Controller
	c.Profile = profile
	c.Name, c.AdvertiseAddress = "controller-0", "10.240.0.10"
	l, socket := c.Layout(), c.Layout().EtcdSocket()
	guide := c
	guide.Profile = config.ProfileGuide
	plain := program.APIServerArgs(guide, l, socket)
	in := Input{Profile: profile, Profiled: map[string][]string{program.APIServer: program.FromProfile(program.APIServerArgs(c, l, socket), plain)}, Args: map[string][]program.Arg{}, Users: map[string][]program.Arg{}, Where: map[string]string{program.APIServer: "kthwd.yaml:9"}}
	for name, ours := range map[string][]program.Arg{
		program.Etcd: program.EtcdArgs(c, l, socket), program.APIServer: program.APIServerArgs(c, l, socket),
		program.ControllerManager: program.ControllerManagerArgs(c, l), program.Scheduler: program.SchedulerArgs(c, l),
	} {
		var overrides []program.Override
		if name == program.APIServer {
			in.Users[name] = program.ParseUser([]string{"event-ttl=2h", "goaway-chance=0.001", "audit-policy-file-"})
		}
		in.Args[name], overrides = program.Merge(name, ours, in.Users[name])
		in.Overrides = append(in.Overrides, overrides...)
	}
	return in
}

// Every flag has its origin, in each form for people.
func TestGolden(t *testing.T) {
	for name, write := range map[string]func(io.Writer, Program) error{"text": Text, "diff": Diff, "unit": Unit, "text-cis": Text} {
		t.Run(name, func(t *testing.T) {
			profile := config.ProfileGuide
			if strings.HasSuffix(name, "-cis") {
				profile = config.ProfileCIS
			}
			var got bytes.Buffer
			for _, p := range All(fixed(profile)) {
				if err := write(&got, p); err != nil {
					t.Fatal(err)
				}
			}
			harness.Golden(t, filepath.Join("testdata", name+".golden"), got.Bytes())
		})
	}
}

// awkward are values that a shell or systemd would change if they were not quoted.
var awkward = []string{
	"plain", "", "two words", "it's", `"double"`, `back\slash`, "$HOME", "${HOME}", "$(id)", "`id`", "a;b", "a|b&c", "*", "~", "#x", "a\tb",
	"two\nlines", "ends\n", "\n", "\x1b[31mred", "\x07", "100%", "%n", "é", "\u202ereversed", "\xff\xfe", "{a,b}", "a=b=c", "!history", `\'`, "'", "''",
}

func withValues() Program {
	p := Program{Name: "args"}
	for _, v := range awkward {
		p.Flags = append(p.Flags, Flag{Key: "x", Value: v})
	}
	return p
}

func want() (all []string) {
	for _, v := range awkward {
		all = append(all, "--x="+v)
	}
	return all
}

// A shell that reads the command line passes on exactly the arguments.
func TestShell(t *testing.T) {
	var b bytes.Buffer
	if err := Shell(&b, withValues()); err != nil {
		t.Fatal(err)
	}
	checkPrintable(t, b.String())
	shells := 0
	for _, shell := range []string{"sh", "dash", "bash", "busybox"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		shells++
		argv := []string{"-c", "args() { printf '%s\\0' \"$@\"; }\n" + b.String()}
		if shell == "busybox" {
			argv = append([]string{"sh"}, argv...)
		}
		out, err := exec.Command(path, argv...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", shell, err, out)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, want()) {
			t.Errorf("%s: got %q, want %q", shell, got, want())
		}
	}
	if shells == 0 {
		t.Skip("no shell here")
	}
}

// systemd reads back the arguments: the words are taken apart as systemd.syntax(7) says.
func TestUnit(t *testing.T) {
	var b bytes.Buffer
	if err := Unit(&b, withValues()); err != nil {
		t.Fatal(err)
	}
	checkPrintable(t, b.String())
	_, line, _ := strings.Cut(strings.ReplaceAll(b.String(), "\\\n", ""), "ExecStart=")
	got := systemdWords(t, strings.TrimSpace(line))
	if got[0] != "/usr/local/bin/args" || !slices.Equal(got[1:], want()) {
		t.Errorf("got %q, want %q", got, want())
	}
}

func checkPrintable(t *testing.T, s string) {
	t.Helper()
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == 0x202e }); i >= 0 {
		t.Errorf("a terminal would obey %q", s[i:min(i+10, len(s))])
	}
}

// systemdWords is extract-word.c of systemd with the flags of ExecStart=, for the escapes that
// kthwd uses.
func systemdWords(t *testing.T, s string) (words []string) {
	t.Helper()
	var word []byte
	inside, any := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			inside, any = !inside, true
		case c == '\\' && i+1 < len(s):
			i++
			switch s[i] {
			case 'x':
				var n byte
				for _, d := range s[i+1 : i+3] {
					n = n<<4 | byte(strings.IndexRune("0123456789abcdef", d))
				}
				word = append(word, n)
				i += 2
			case '\\', '"':
				word = append(word, s[i])
			default:
				t.Fatalf("an escape that systemd does not have here: \\%c", s[i])
			}
		case (c == '%' || c == '$') && (i+1 == len(s) || s[i+1] != c):
			t.Fatalf("systemd would expand %q", s[i:])
		case c == '%' || c == '$':
			word = append(word, c)
			i++
		case c == ' ' && !inside:
			if any || len(word) > 0 {
				words = append(words, string(word))
			}
			word, any = nil, false
		default:
			word = append(word, c)
		}
	}
	return append(words, string(word))
}

// systemd itself accepts the units.
func TestUnitVerified(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	for _, p := range append(All(fixed(config.ProfileGuide)), withValues()) {
		var b bytes.Buffer
		if err := Unit(&b, p); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), p.Name+".service")
		text := strings.ReplaceAll(b.String(), "ExecStart=/usr/local/bin/"+p.Name, "ExecStart=/bin/true")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", p.Name, err, out)
		}
	}
}
