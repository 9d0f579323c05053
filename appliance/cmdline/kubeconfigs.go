package cmdline

import (
	"net/url"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/program"
)

// Servers returns the hosts of the API servers that the kubeconfigs on the programs'
// command lines name, each once. A kubeconfig that cannot be read names none.
func Servers(args map[string][]program.Arg) (hosts []string) {
	for _, all := range args {
		for _, a := range all {
			if !strings.HasSuffix(a.Key, "kubeconfig") || a.Value == "" {
				continue
			}
			config, err := clientcmd.LoadFromFile(a.Value)
			if err != nil {
				continue // the program reports it
			}
			for _, c := range config.Clusters {
				if u, err := url.Parse(c.Server); err == nil && u.Hostname() != "" && !strings.Contains(u.Hostname(), ",") {
					hosts = append(hosts, u.Hostname())
				}
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
