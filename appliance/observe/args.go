package observe

import (
	"path/filepath"
	"slices"
	"strings"

	"kthwd/appliance/program"
)

// roles are the roles of flags that take a file, by the end of their name; the first that
// fits decides.
var roles = []struct {
	end  string
	role Role
}{
	{"service-account-key-file", TokenKeys},
	{"service-account-signing-key-file", TokenKey},
	{"service-account-private-key-file", TokenKey},
	{"encryption-provider-config", EncryptionKey},
	{"ca-file", CA},
	{"certificate-authority", CA},
	{"cert-file", Certificate},
	{"client-certificate", Certificate},
	{"key-file", Key},
	{"client-key", Key},
	{"kubeconfig", Kubeconfig},
	{"config-file", Settings},
	{"policy-file", Settings},
	{"authorization-config", Settings},
	{"authentication-config", Settings},
	{"config", Settings},
}

// keyFlags are the flags of the keys of certificates, by the flag of the certificate.
var keyFlags = map[string]string{
	"tls-cert-file": "tls-private-key-file", "cert-file": "key-file", "peer-cert-file": "peer-key-file",
	"etcd-certfile": "etcd-keyfile", "kubelet-client-certificate": "kubelet-client-key",
	"proxy-client-cert-file": "proxy-client-key-file", "cluster-signing-cert-file": "cluster-signing-key-file",
}

// FilesOf lists the files that the programs' command lines name, each once. A pair of
// certificate and key that is also a CA, such as the signer's, is a CA.
func FilesOf(args map[string][]program.Arg) (all []File) {
	programs := []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler}
	for _, r := range roles {
		for _, name := range programs {
			for _, a := range args[name] {
				if !strings.HasSuffix(a.Key, r.end) || !filepath.IsAbs(a.Value) || slices.ContainsFunc(all, func(f File) bool { return f.Path == a.Value }) {
					continue
				}
				f := File{Path: a.Value, Role: r.role}
				if r.role == Certificate {
					f.Key = program.Value(args[name], keyFlags[a.Key])
				}
				all = append(all, f)
			}
		}
	}
	return slices.DeleteFunc(all, func(f File) bool { return f.Role == Certificate && f.Key == "" })
}
