package program

import (
	"fmt"
	"slices"
	"strings"

	"kthwd/appliance/advice"
)

// Removed returns the flag that the argument takes out of kthwd's: "authorization-mode-" takes
// out --authorization-mode.
func (a Arg) Removed() (key string, ok bool) {
	key, ok = strings.CutSuffix(a.Key, "-")
	return key, ok && a.Value == ""
}

// needed are flags of kthwd's that may be replaced, but not taken out, with the reason.
var needed = map[string]map[string]string{
	Etcd: {
		"name":                        "the members know each other by it",
		"cert-file":                   "its ports speak TLS only",
		"key-file":                    "its ports speak TLS only",
		"peer-cert-file":              "its ports speak TLS only",
		"peer-key-file":               "its ports speak TLS only",
		"client-cert-auth":            "without it etcd answers everybody",
		"trusted-ca-file":             "without it etcd answers everybody",
		"peer-client-cert-auth":       "without it everybody is a peer",
		"peer-trusted-ca-file":        "without it everybody is a peer",
		"listen-peer-urls":            "the other members reach this one there",
		"initial-advertise-peer-urls": "the other members reach this one there",
		"advertise-client-urls":       "etcd does not start without it",
		"initial-cluster":             "it names the members; a discovery flag of etcd takes its place",
	},
	APIServer: {
		"authorization-mode":               "without it everybody may do everything; authorization-config takes its place",
		"service-account-issuer":           "kube-apiserver does not start without it",
		"service-account-key-file":         "kube-apiserver does not start without it; service-account-signing-endpoint takes its place",
		"service-account-signing-key-file": "kube-apiserver does not start without it; service-account-signing-endpoint takes its place",
	},
	ControllerManager: {"leader-elect": "kthwd holds the lease"},
	Scheduler:         {"leader-elect": "kthwd holds the lease"},
}

// checkRemoval refuses to take out a flag that kthwd does not set, or that it cannot do
// without.
func checkRemoval(program, key string, ours, users []Arg) error {
	flag := fmt.Sprintf("--%s-arg=%s-", program, key)
	if instead, owned := Owned[program][key]; owned {
		return advice.With(fmt.Errorf("%s: kthwd relies on this flag", flag), instead)
	}
	if why, is := needed[program][key]; is && len(yielding(program, key, users)) == 0 {
		return advice.With(fmt.Errorf("%s: kthwd relies on this flag: %s", flag, why), "give it another value with --"+program+"-arg="+key+"=VALUE")
	}
	if !slices.ContainsFunc(ours, func(a Arg) bool { return a.Key == key }) {
		return advice.With(fmt.Errorf("%s: kthwd sets no such flag", flag), "leave it out; a minus at the end takes out one of kthwd's own flags")
	}
	return nil
}

// A rule says which of kthwd's flags give way to a flag of the user's, because the
// program refuses both together.
type rule struct {
	users []string // any of these
	ours  []string
}

// rules are taken from upstream's validation: see TestFlagsThatExcludeEachOther.
var rules = map[string][]rule{
	Etcd: { // embed/config.go:Validate, ErrConflictBootstrapFlags
		{[]string{"discovery-endpoints", "discovery-srv"}, []string{"initial-cluster"}},
	},
	APIServer: {
		// kubeapiserver/options/authorization.go:Validate
		{[]string{"authorization-config"}, []string{"authorization-mode"}},
		// controlplane/apiserver/options/validation.go:validateServiceAccountTokenSigningConfig
		{[]string{"service-account-signing-endpoint"}, []string{"service-account-signing-key-file", "service-account-key-file"}},
	},
}

// yielding returns the user's flags to which kthwd's flag key gives way.
func yielding(program, key string, users []Arg) (to []string) {
	for _, u := range users {
		if u.Value == "" {
			continue // switched off
		}
		for _, r := range rules[program] {
			if slices.Contains(r.ours, key) && slices.Contains(r.users, u.Key) {
				to = append(to, u.Key)
			}
		}
	}
	return to
}

// giveWay returns kthwd's arguments without those that the user has taken out, or that
// exclude one of the user's.
func giveWay(program string, ours, users []Arg) (kept []Arg, overrides []Override) {
	if program == ControllerManager {
		ours = splitSigners(ours, users)
	}
	for _, a := range ours {
		removed := slices.ContainsFunc(users, func(u Arg) bool { key, ok := u.Removed(); return ok && key == a.Key })
		to := yielding(program, a.Key, users)
		switch {
		case removed:
			overrides = append(overrides, Override{program, a.Key, a.Value, "(taken out)"})
		case len(to) > 0:
			overrides = append(overrides, Override{program, a.Key, a.Value, "(gives way to --" + strings.Join(to, ", --") + ")"})
		default:
			a = withoutDisabled(program, a, users)
			without, gaveWay := withoutSettings(program, a, users)
			if gaveWay && !slices.ContainsFunc(users, func(u Arg) bool { return u.Key == a.Key }) {
				overrides = append(overrides, Override{program, a.Key, a.Value, without.Value + " (" + eventRateLimit + " gives way to --" + keyAdmissionConfig + ")"})
			}
			kept = append(kept, without)
		}
	}
	return kept, overrides
}

const keyAdmissionPlugins = "enable-admission-plugins"

// withoutDisabled leaves out of kthwd's list of admission plugins what the user's disables: a
// plugin in both is refused (apiserver/pkg/server/options/admission.go:Validate).
func withoutDisabled(program string, a Arg, users []Arg) Arg {
	if program != APIServer || a.Key != keyAdmissionPlugins {
		return a
	}
	var off []string
	for _, u := range users {
		if u.Key == "disable-admission-plugins" {
			off = append(off, strings.Split(u.Value, ",")...)
		}
	}
	on := slices.DeleteFunc(strings.Split(a.Value, ","), func(p string) bool { return slices.Contains(off, p) })
	return Arg{a.Key, strings.Join(on, ",")}
}

// signers are those that kube-controller-manager can be given files for, each alone.
var signers = []string{"kubelet-serving", "kubelet-client", "kube-apiserver-client", "legacy-unknown"}

// Signers returns the signers of kube-controller-manager that can be given files.
func Signers() []string { return slices.Clone(signers) }

// splitSigners gives kthwd's CA to each signer for which the user's flags name none. One
// pair for all of them excludes one for any of them
// (kube-controller-manager/app/options/csrsigningcontroller.go:Validate).
func splitSigners(ours, users []Arg) (split []Arg) {
	const all = "cluster-signing-"
	named := func(signer string) bool {
		return slices.ContainsFunc(users, func(u Arg) bool {
			return u.Value != "" && (u.Key == all+signer+"-cert-file" || u.Key == all+signer+"-key-file")
		})
	}
	if !slices.ContainsFunc(signers, named) {
		return ours
	}
	for _, a := range ours {
		half, is := strings.CutPrefix(a.Key, all)
		if !is || half != "cert-file" && half != "key-file" {
			split = append(split, a)
			continue
		}
		for _, signer := range signers {
			if !named(signer) {
				split = append(split, Arg{all + signer + "-" + half, a.Value})
			}
		}
	}
	return split
}
