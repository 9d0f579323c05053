package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/harness"
)

// input is a controller with its files made, as a start leaves them.
func input(t *testing.T, profile string) Input {
	t.Helper()
	c := config.Default().Controller
	c.Profile, c.Name, c.AdvertiseAddress, c.DataDir = profile, "c0", "10.240.0.10", filepath.Join(t.TempDir(), "data")
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Ensure(c.Layout(), c.PKISpec()); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.EtcdDataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.DataDir, "kthwd.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return Input{Config: c, File: file, Args: args(c)}
}

func args(c config.Controller) map[string][]program.Arg {
	l := c.Layout()
	return map[string][]program.Arg{
		program.Etcd: program.EtcdArgs(c, l, l.EtcdSocket()), program.APIServer: program.APIServerArgs(c, l, l.EtcdSocket()),
		program.ControllerManager: program.ControllerManagerArgs(c, l), program.Scheduler: program.SchedulerArgs(c, l),
	}
}

// With the profile cis no rule fails that a standard decides by a command. Without it, only
// those fail that a flag of the guide contradicts, or for which the guide has none.
func TestProfiles(t *testing.T) {
	for profile, want := range map[string][]string{
		config.ProfileCIS: nil,
		config.ProfileGuide: {
			"cis 1.2.18", "cis 1.3.7", "cis 1.4.2",
			"nsa pods/1", "nsa network/3",
			"stig V-242384", "stig V-242385", "stig V-242400", "stig V-242463", "stig V-254800",
		},
	} {
		all := Run(input(t, profile))
		var failed []string
		for _, r := range all {
			if r.Verdict == Fail && r.Automated {
				failed = append(failed, r.Standard+" "+r.ID)
			}
			if r.Automated && (r.Verdict == Manual || r.Verdict == NA) {
				t.Errorf("%s: %s %s is not decided: %s %s", profile, r.Standard, r.ID, r.Verdict, r.Why)
			}
			if r.Verdict != Pass && r.Why == "" && r.Fix == "" {
				t.Errorf("%s: %s %s is %s without a reason", profile, r.Standard, r.ID, r.Verdict)
			}
		}
		if !slices.Equal(failed, want) {
			t.Errorf("%s: got %q, want %q", profile, failed, want)
		}
		if got := Passes(all, LevelAutomated); got != (want == nil) {
			t.Errorf("%s: passes: got %t", profile, got)
		}
	}
}

// The table as people read it, for both profiles, on a machine without files.
func TestGolden(t *testing.T) {
	for _, profile := range []string{config.ProfileGuide, config.ProfileCIS} {
		c := config.Default().Controller
		c.Profile, c.Name, c.AdvertiseAddress, c.DataDir, c.EtcdDataDir = profile, "c0", "10.240.0.10", "/nowhere/kubernetes", "/nowhere/kubernetes/etcd"
		var got bytes.Buffer
		if err := Text(&got, Run(Input{Config: c, Args: args(c)}), func(_, s string) string { return s }); err != nil {
			t.Fatal(err)
		}
		harness.Golden(t, filepath.Join("testdata", profile+".golden"), got.Bytes())
	}
}

// poison are values that some rule must refuse. "" takes the flag out.
var poison = []string{
	"", "0", "1", "true", "false", "0.0.0.0", "AlwaysAllow", "AlwaysAdmit", "ServiceAccount", "NamespaceLifecycle", "PodSecurity", "ValidatingAdmissionWebhook",
	"TLS_RSA_WITH_AES_128_CBC_SHA", "RotateKubeletServerCertificate=false", "api/all=true", "https://10.0.0.1:2379", "VersionTLS10", "/nowhere",
}

// Every rule that the program decides fails when what it reads is spoilt: the flag that
// decides it is taken out or has another value, or the file has another mode, owner or content.
func TestSpoilt(t *testing.T) {
	in := input(t, config.ProfileCIS)
	for _, r := range Run(in) {
		if r.Verdict != Pass {
			continue
		}
		t.Run(r.Standard+" "+r.ID, func(t *testing.T) {
			fails := func(in Input) bool {
				return slices.ContainsFunc(Run(in, r.Standard), func(now Result) bool {
					if now.ID == r.ID && now.Verdict == Fail && now.Fix == "" {
						t.Error("it fails without saying how to mend it")
					}
					return now.ID == r.ID && now.Verdict == Fail
				})
			}
			if !slices.ContainsFunc(otherFlags(in, r), fails) && !failsWithFiles(t, r, fails) {
				t.Errorf("it never fails: %s", r.Decides)
			}
		})
	}
}

// otherFlags are inputs with other values of the flags that decide a rule. One that holds in
// another way may need that to be spoilt, too.
func otherFlags(in Input, r Result) (all []Input) {
	for _, name := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
		for part := range strings.SplitSeq(r.Decides, "; ") {
			rest, is := strings.CutPrefix(part, name+" ")
			if !is {
				continue
			}
			key, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(rest, "without "), "--"), "=")
			for _, value := range append(poison, program.Value(in.Args[program.APIServer], "client-ca-file")) {
				one := withFlag(in, name, key, value)
				all = append(all, one, withFlag(one, program.Etcd, "client-cert-allowed-hostname", "everybody"))
			}
		}
	}
	return append(all, withFlag(in, program.Etcd, "client-cert-allowed-hostname", "everybody"))
}

// failsWithFiles spoils the file that decides a rule.
func failsWithFiles(t *testing.T, r Result, fails func(Input) bool) bool {
	t.Helper()
	if strings.Contains(r.Decides, " owner ") && os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	for _, change := range []func(string) error{
		func(p string) error { return os.Chmod(p, 0o777) },
		func(p string) error { return os.Chown(p, 12345, 12345) },
		func(p string) error { return os.Chown(filepath.Join(p, "ca.pem"), 12345, 12345) },
		func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) },
	} {
		in := input(t, config.ProfileCIS)
		for _, now := range Run(in, r.Standard) {
			if path, _, _ := strings.Cut(now.Decides, " "); now.ID == r.ID && strings.HasPrefix(path, "/") && change(path) == nil && fails(in) {
				return true
			}
		}
	}
	return false
}

// withFlag returns the input with another value of a flag, or without it.
func withFlag(in Input, name, key, value string) Input {
	copied := map[string][]program.Arg{}
	for n, all := range in.Args {
		copied[n] = slices.DeleteFunc(slices.Clone(all), func(a program.Arg) bool { return n == name && a.Key == key })
	}
	if value != "" {
		copied[name] = append(copied[name], program.Arg{Key: key, Value: value})
	}
	in.Args = copied
	return in
}

// A rule stands once, and every manual one has a test or says what to look at.
func TestTables(t *testing.T) {
	for _, s := range Standards() {
		seen := map[string]bool{}
		for _, r := range rules[s] {
			name := fmt.Sprintf("%s %s", s, r.id)
			if seen[r.id] {
				t.Errorf("%s stands twice", name)
			}
			seen[r.id] = true
			if r.test == nil && r.why == "" {
				t.Errorf("%s has neither a test nor a reason", name)
			}
			if r.test != nil && r.na {
				t.Errorf("%s has a test that is never made", name)
			}
		}
		if len(seen) == 0 || Title(s) == "" {
			t.Errorf("%s has no rules or no title", s)
		}
	}
}
