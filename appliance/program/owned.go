package program

import (
	"fmt"
	"slices"

	"kthwd/appliance/advice"
)

// Owned maps each program to the keys that kthwd's other parts rely on: a pass-through
// argument may repeat kthwd's value, but not change it. The text names what to set
// instead.
var Owned = map[string]map[string]string{
	Etcd: {
		"data-dir":           "set --etcd-data-dir",
		"listen-client-urls": "set --advertise-address, --etcd-client-port or --profile",
		"log-level":          "set --log-level=etcd=LEVEL",
		"logger":             "kthwd has one logger",
		"log-outputs":        "kthwd has one logger",
		"config-file":        "give its settings as --etcd-arg",
	},
	APIServer: {
		"advertise-address":        "set --advertise-address",
		"bind-address":             "set --bind-address",
		"secure-port":              "set --secure-port",
		"service-cluster-ip-range": "set --service-cluster-ip-range",
		"etcd-servers":             "a kthwd API server uses the member beside it",
		"etcd-cafile":              "a kthwd API server uses the member beside it",
		"etcd-certfile":            "a kthwd API server uses the member beside it",
		"etcd-keyfile":             "a kthwd API server uses the member beside it",
		"client-ca-file":           "put the file into --data-dir under the guide's name",
		"tls-cert-file":            "put the file into --data-dir under the guide's name",
		"tls-private-key-file":     "put the file into --data-dir under the guide's name",
	},
	ControllerManager: {
		"secure-port":              "set --controller-manager-port",
		"kubeconfig":               "put the file into --data-dir under the guide's name",
		"service-cluster-ip-range": "set --service-cluster-ip-range",
		"cluster-cidr":             "set --cluster-cidr",
	},
	Scheduler: {
		"secure-port":     "set --scheduler-port",
		"kubeconfig":      "put the file into --data-dir under the guide's name",
		"write-config-to": "upstream's code exits the process there",
	},
}

// harmless are owned keys whose value in the guide cannot be kept and need not be:
// kthwd uses the files and addresses that the value names anyway.
var harmless = map[string]bool{
	"etcd-servers": true, "etcd-cafile": true, "etcd-certfile": true, "etcd-keyfile": true,
}

// CheckOwned refuses the user's arguments that would change an owned key.
func CheckOwned(program string, ours, users []Arg) (kept []Arg, warnings []string, errs []error) {
	for _, u := range users {
		if key, is := u.Removed(); is {
			if err := checkRemoval(program, key, ours, users); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		instead, isOwned := Owned[program][u.Key]
		same := slices.Contains(ours, u)
		switch {
		case !isOwned || same:
			kept = append(kept, u)
		case harmless[u.Key]:
			warnings = append(warnings, fmt.Sprintf("%s: %s dropped: %s", program, u, instead))
		default:
			errs = append(errs, advice.With(fmt.Errorf("--%s-arg=%s=%s: kthwd sets this flag itself", program, u.Key, u.Value), instead))
		}
	}
	return kept, warnings, errs
}
