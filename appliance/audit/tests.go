package audit

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"kthwd/appliance/program"
)

// finding is what a test found.
type finding struct {
	verdict    Verdict
	equivalent bool
	decides    string
	why        string // replaces the rule's
	fix        string
}

// test is a condition of a rule.
type test func(Input) finding

// flagTest tests the value of a flag; "" stands for one that is not set.
func flagTest(name, key, fix string, good func(value string, set bool) bool) test {
	return func(in Input) finding {
		set := slices.ContainsFunc(in.Args[name], func(a program.Arg) bool { return a.Key == key })
		value := program.Value(in.Args[name], key)
		f := finding{verdict: Fail, decides: name + " without --" + key, fix: fix}
		if set {
			f.decides = name + " --" + key + "=" + value
		}
		if good(value, set) {
			f.verdict = Pass
		}
		return f
	}
}

func set(name, key string) test {
	return flagTest(name, key, setFix(name, key, "VALUE"), func(v string, set bool) bool { return set && v != "" })
}

func unset(name, key string) test {
	return flagTest(name, key, "remove "+key+" from "+name+"-arg", func(_ string, set bool) bool { return !set })
}

func is(name, key, want string) test {
	return flagTest(name, key, setFix(name, key, want), func(v string, set bool) bool { return set && v == want })
}

// isOrUnset is for a flag whose default is good.
func isOrUnset(name, key, want string) test {
	return flagTest(name, key, "remove "+key+" from "+name+"-arg", func(v string, set bool) bool { return !set || v == want })
}

func has(name, key, item string) test {
	return flagTest(name, key, "add "+item+" to the list of --"+name+"-arg="+key, func(v string, _ bool) bool {
		return slices.Contains(strings.Split(v, ","), item)
	})
}

func lacks(name, key, item string) test {
	return flagTest(name, key, "remove "+item+" from --"+name+"-arg="+key, func(v string, _ bool) bool {
		return !slices.Contains(strings.Split(v, ","), item)
	})
}

func atLeast(name, key string, least int) test {
	return flagTest(name, key, setFix(name, key, strconv.Itoa(least)), func(v string, _ bool) bool {
		n, err := strconv.Atoi(v)
		return err == nil && n >= least
	})
}

// only accepts a list that is not empty and whose items are all known.
func only(name, key string, known []string) test {
	return flagTest(name, key, "name only suites of the standard in --"+name+"-arg="+key, func(v string, set bool) bool {
		return set && !slices.ContainsFunc(strings.Split(v, ","), func(s string) bool { return !slices.Contains(known, s) })
	})
}

func setFix(name, key, value string) string {
	return "set --" + name + "-arg=" + key + "=" + value
}

// both passes when both tests do; the first that fails decides.
func both(tests ...test) test {
	return func(in Input) finding {
		var decides []string
		f := finding{verdict: Pass}
		for _, t := range tests {
			one := t(in)
			if one.verdict != Pass {
				return one
			}
			f.equivalent = f.equivalent || one.equivalent
			if f.why == "" {
				f.why = one.why
			}
			if !slices.Contains(decides, one.decides) {
				decides = append(decides, one.decides)
			}
		}
		f.decides = strings.Join(decides, "; ")
		return f
	}
}

// orElse passes when the words of the rule are met, and as an equivalent when other does.
func orElse(words, other test, why string) test {
	return func(in Input) finding {
		f := words(in)
		if f.verdict == Pass {
			return f
		}
		switch o := other(in); o.verdict {
		case Pass:
			return finding{verdict: Pass, equivalent: true, decides: o.decides, why: why}
		case Manual:
			return o
		}
		return f
	}
}

// orManual leaves to a person what does not pass.
func orManual(t test) test {
	return func(in Input) finding {
		f := t(in)
		if f.verdict == Fail {
			f.verdict, f.fix = Manual, ""
		}
		return f
	}
}

// paths are the files or directories that a rule is about.
type paths func(Input) []string

func configFile(in Input) []string { return []string{in.File} }
func etcdDir(in Input) []string    { return []string{in.Config.EtcdDataDir} }

// dataFiles are files of the data directory by their patterns.
func dataFiles(patterns ...string) paths {
	return func(in Input) (all []string) {
		for _, p := range patterns {
			found, _ := filepath.Glob(filepath.Join(in.Config.DataDir, p)) // the patterns are well-formed
			all = append(all, found...)
		}
		return all
	}
}

// named is the file that a flag names.
func named(name, key string) paths {
	return func(in Input) []string { return []string{program.Value(in.Args[name], key)} }
}

// eachFile judges every file that exists. The worst decides.
func eachFile(of paths, judge func(path string, info fs.FileInfo) finding) test {
	return func(in Input) finding {
		best := finding{verdict: NA, why: "there is no such file yet"}
		for _, path := range of(in) {
			if path == "" {
				continue
			}
			info, err := os.Stat(path)
			if err != nil {
				if best.verdict == NA && os.IsPermission(err) {
					best = finding{verdict: Manual, decides: path, why: "this user cannot look at it"}
				}
				continue
			}
			f := judge(path, info)
			if f.verdict == Fail {
				return f
			}
			if best.verdict != Pass || f.equivalent && !best.equivalent {
				best = f
			}
		}
		return best
	}
}

// mode wants no permission beyond most.
func mode(of paths, most fs.FileMode) test {
	return eachFile(of, func(path string, info fs.FileInfo) finding {
		f := finding{verdict: Pass, decides: fmt.Sprintf("%s mode %04o", path, info.Mode().Perm())}
		if info.Mode().Perm()&^most != 0 {
			f.verdict, f.fix = Fail, fmt.Sprintf("chmod %o %s", most, path)
		}
		return f
	})
}

// groupReadable is the equivalent of mode 600 for a file that root writes and the service's
// user reads: its group, and nobody else, may read it.
func groupReadable(of paths) test {
	return orElse(mode(of, 0o600), mode(of, 0o640), "root owns it, and the user of the service reads it through its group")
}

// owner wants a file to be root's, or of the user to whom the data directory belongs.
func owner(of paths) test {
	return func(in Input) finding {
		uid, gid := ids(in.Config.DataDir)
		return eachFile(of, func(path string, info fs.FileInfo) finding {
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok {
				return finding{verdict: Manual, decides: path}
			}
			f := finding{verdict: Pass, decides: fmt.Sprintf("%s owner %d:%d", path, st.Uid, st.Gid)}
			switch {
			case st.Uid == 0 && st.Gid == 0:
			case (st.Uid == 0 || int(st.Uid) == uid) && (st.Gid == 0 || int(st.Gid) == gid):
				f.equivalent, f.why = true, "kthwd runs as a user of its own, without root, to whom its files belong"
			default:
				f.verdict, f.fix = Fail, "chown it to root, or to the user that kthwd runs as"
			}
			return f
		})(in)
	}
}

// ids are the owner and the group of the data directory; -1 when it does not exist.
func ids(dir string) (uid, gid int) {
	info, err := os.Stat(dir)
	if err != nil {
		return -1, -1
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(st.Uid), int(st.Gid)
}

// readYAML reads the file that a flag names; ok is false if it cannot be read. A file of the run
// directory is the one that a start with this configuration makes: that of a kthwd which runs
// with another one may be there.
func readYAML(in Input, name, key string, into any) (path string, ok bool) {
	path = program.Value(in.Args[name], key)
	data, made := program.RunFiles(in.Config, in.Config.Layout())[path]
	if !made {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return path, false
		}
	}
	return path, yaml.Unmarshal(data, into) == nil
}

// unread is the verdict of a rule whose file cannot be read.
func unread(path string) finding {
	if path == "" {
		return finding{verdict: Fail, decides: "no such file is named"}
	}
	return finding{verdict: Manual, decides: path, why: "this user cannot read it, or it is not made yet"}
}

// anonymousLimited wants an authentication configuration that admits requests without
// credentials to some paths only.
func anonymousLimited(in Input) finding {
	var file struct {
		Anonymous *struct {
			Enabled    bool
			Conditions []struct{ Path string }
		}
	}
	path, ok := readYAML(in, program.APIServer, "authentication-config", &file)
	if !ok {
		return unread(path)
	}
	f := finding{verdict: Pass, decides: path}
	if file.Anonymous == nil || file.Anonymous.Enabled && len(file.Anonymous.Conditions) == 0 {
		f.verdict, f.fix = Fail, "name the paths of probes in anonymous.conditions"
	}
	return f
}

// strongProvider wants an encryption provider that encrypts to be first for secrets.
func strongProvider(in Input) finding {
	var file struct {
		Resources []struct {
			Resources []string
			Providers []map[string]any
		}
	}
	path, ok := readYAML(in, program.APIServer, "encryption-provider-config", &file)
	if !ok {
		return unread(path)
	}
	for _, r := range file.Resources {
		if !slices.ContainsFunc(r.Resources, func(s string) bool { return s == "secrets" || s == "*." || s == "*.*" }) || len(r.Providers) == 0 {
			continue
		}
		for name := range r.Providers[0] {
			f := finding{verdict: Fail, decides: path + " first provider " + name, fix: "put secretbox, aescbc or kms first"}
			if slices.Contains([]string{"aescbc", "kms", "secretbox"}, name) {
				f.verdict = Pass
			}
			return f
		}
	}
	return finding{verdict: Fail, decides: path + " without a provider for secrets", fix: "add secrets with the provider secretbox"}
}

// podSecurity wants a default of Pod Security that enforces one of the levels.
func podSecurity(levels ...string) test {
	return func(in Input) finding {
		var file struct {
			Plugins []struct {
				Name          string
				Configuration struct{ Defaults struct{ Enforce string } }
			}
		}
		path, ok := readYAML(in, program.APIServer, "admission-control-config-file", &file)
		f := finding{verdict: Fail, decides: "kube-apiserver without --admission-control-config-file", fix: "set profile: cis, or name a file of your own with --kube-apiserver-arg=admission-control-config-file=FILE"}
		if path != "" && !ok {
			return unread(path)
		}
		for _, p := range file.Plugins {
			if p.Name != "PodSecurity" {
				continue
			}
			f.decides = "kube-apiserver --admission-control-config-file=" + path + ", enforce " + p.Configuration.Defaults.Enforce
			if slices.Contains(levels, p.Configuration.Defaults.Enforce) {
				f.verdict = Pass
			}
		}
		return f
	}
}

// ownCA wants etcd to trust another CA than the API server does.
func ownCA(in Input) finding {
	etcd, api := program.Value(in.Args[program.Etcd], "trusted-ca-file"), program.Value(in.Args[program.APIServer], "client-ca-file")
	f := finding{verdict: Pass, decides: "etcd --trusted-ca-file=" + etcd}
	one, err1 := os.ReadFile(etcd)
	other, err2 := os.ReadFile(api)
	if etcd == api || err1 == nil && err2 == nil && bytes.Equal(one, other) {
		f.verdict, f.fix = Fail, "give etcd a CA of its own: kthwd pki split-etcd-ca"
	}
	return f
}

// controllersOnly holds as long as the user does not name others.
func controllersOnly(in Input) finding {
	for _, key := range []string{"client-cert-allowed-hostname", "peer-cert-allowed-cn", "peer-cert-allowed-hostname"} {
		if v := program.Value(in.Args[program.Etcd], key); v != "" {
			return finding{verdict: Fail, decides: "etcd --" + key + "=" + v}
		}
	}
	return finding{verdict: Pass, decides: "etcd admits the certificates of controllers only"}
}

// socketOnly wants the API server to reach etcd through a unix socket and nothing else.
func socketOnly(in Input) finding {
	servers := program.Value(in.Args[program.APIServer], "etcd-servers")
	f := finding{verdict: Pass, decides: "kube-apiserver --etcd-servers=" + servers}
	for s := range strings.SplitSeq(servers, ",") {
		if !strings.HasPrefix(s, "unix://") {
			f.verdict = Fail
		}
	}
	return f
}

// noAlpha wants that no group of alpha APIs is switched on.
func noAlpha(in Input) finding {
	v := program.Value(in.Args[program.APIServer], "runtime-config")
	f := finding{verdict: Pass, decides: "kube-apiserver --runtime-config=" + v, fix: "set profile: cis, or take the flag out: --kube-apiserver-arg=runtime-config-"}
	for item := range strings.SplitSeq(v, ",") {
		name, value, _ := strings.Cut(item, "=")
		if on := value != "false"; on && (name == "api/all" || name == "api/alpha" || strings.Contains(name, "alpha")) {
			f.verdict = Fail
		}
	}
	if v == "" {
		f.decides = "kube-apiserver without --runtime-config"
	}
	if gates := program.Value(in.Args[program.APIServer], "feature-gates"); strings.Contains(gates, "AllAlpha=true") {
		f.verdict, f.decides = Fail, "kube-apiserver --feature-gates="+gates
	}
	return f
}

// localPorts wants etcd's client port to be on loopback.
func localPorts(in Input) finding {
	urls := program.Value(in.Args[program.Etcd], "listen-client-urls")
	f := finding{verdict: Pass, decides: "etcd --listen-client-urls=" + urls, fix: "set profile: cis"}
	for u := range strings.SplitSeq(urls, ",") {
		if !strings.HasPrefix(u, "unix://") && !strings.HasPrefix(u, "https://127.") && !strings.HasPrefix(u, "https://[::1]") {
			f.verdict = Fail
		}
	}
	return f
}

// auditPolicy wants a policy that names secrets, and records exec.
func auditPolicy(in Input) finding {
	var file struct {
		Rules []struct {
			Level     string
			Resources []struct{ Resources []string }
		}
	}
	path, ok := readYAML(in, program.APIServer, "audit-policy-file", &file)
	if !ok {
		return unread(path)
	}
	f := finding{verdict: Pass, decides: path}
	if len(file.Rules) == 0 || file.Rules[len(file.Rules)-1].Level == "None" {
		f.verdict, f.fix = Fail, "end the policy with a rule of level Metadata for all requests"
	}
	for _, r := range file.Rules {
		for _, res := range r.Resources {
			if (r.Level == "Request" || r.Level == "RequestResponse") && slices.Contains(res.Resources, "secrets") {
				f.verdict, f.fix = Fail, "record secrets at level Metadata: the log would hold them"
			}
		}
	}
	return f
}
