package commands

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	apiserverv1alpha1 "k8s.io/apiserver/pkg/apis/apiserver/v1alpha1"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/apiserver/pkg/server/egressselector"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// A named file is one that a program's flag names.
type named struct {
	keys   []string           // flags that name such a file
	secret bool               // nobody else may read it, whatever it holds
	load   func(string) error // upstream's own loader; nil where upstream's validation loads it, or there is nothing to load
}

// namedFiles are the files that a program reads only while it starts, when etcd runs
// already, and the secrets among all files. A file that several programs use stands once.
var namedFiles = []named{
	{keys: []string{"admission-control-config-file"}, load: loadAdmission},
	{keys: []string{"egress-selector-config-file"}, load: func(path string) error {
		_, err := egressselector.ReadEgressSelectorConfiguration(path)
		return err
	}},
	{keys: []string{"tracing-config-file"}, load: func(path string) error {
		_, err := genericoptions.ReadTracingConfiguration(path)
		return err
	}},
	{keys: []string{"audit-webhook-config-file", "authentication-token-webhook-config-file", "authorization-webhook-config-file"}, secret: true, load: func(path string) error {
		_, err := webhook.LoadKubeconfig(path, nil)
		return err
	}},
	{keys: []string{"token-auth-file"}, secret: true, load: func(path string) error {
		_, err := tokenfile.NewCSV(path)
		return err
	}},
	{keys: []string{"kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"}, secret: true, load: func(path string) error {
		_, err := clientcmd.BuildConfigFromFlags("", path)
		return err
	}},
	{keys: []string{"service-account-signing-key-file", "service-account-private-key-file"}, secret: true, load: func(path string) error {
		_, err := keyutil.PrivateKeyFromFile(path)
		return err
	}},
	{keys: []string{"service-account-key-file"}, load: func(path string) error {
		_, err := keyutil.PublicKeysFromFile(path)
		return err
	}},
	{keys: []string{"client-ca-file", "requestheader-client-ca-file", "kubelet-certificate-authority", "oidc-ca-file", "peer-ca-file", "root-ca-file", "trusted-ca-file", "peer-trusted-ca-file"}, load: loadCAs},
	{keys: []string{"encryption-provider-config", "tls-private-key-file", "kubelet-client-key", "proxy-client-key-file", "key-file", "peer-key-file", "client-key-file", "cluster-signing-key-file"}, secret: true},
}

// pairs are the flags that name a certificate and its key.
var pairs = [][2]string{
	{"tls-cert-file", "tls-private-key-file"}, {"kubelet-client-certificate", "kubelet-client-key"}, {"proxy-client-cert-file", "proxy-client-key-file"},
	{"cert-file", "key-file"}, {"peer-cert-file", "peer-key-file"}, {"client-cert-file", "client-key-file"},
}

func init() {
	for _, signer := range append([]string{""}, program.Signers()...) {
		if signer != "" {
			signer += "-"
		}
		pairs = append(pairs, [2]string{"cluster-signing-" + signer + "cert-file", "cluster-signing-" + signer + "key-file"})
	}
}

// checkFiles loads the files that the flags name with upstream's own loaders, and refuses a
// secret that others can read.
func (l *Lines) checkFiles() error {
	var errs []error
	loaded := loads{}
	for _, name := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
		args := l.Args[name]
		for _, a := range args {
			for _, path := range filesIn(a) {
				errs = append(errs, loaded.checkFile(name, program.Arg{Key: a.Key, Value: path}))
			}
		}
		for _, p := range pairs {
			errs = append(errs, checkPair(name, program.Arg{Key: p[0], Value: program.Value(args, p[0])}, program.Value(args, p[1])))
		}
	}
	return errors.Join(errs...)
}

// filesIn lists what may be files in the value of a flag. A flag that is known names one, whose
// path may have commas; another one may be a list, as --tls-sni-cert-key is.
func filesIn(a program.Arg) []string {
	if namedBy(a.Key) >= 0 {
		return []string{a.Value}
	}
	return strings.Split(a.Value, ",")
}

// loads are the results of the loaders, each by its place in namedFiles and the path: several
// flags of several programs name the same kubeconfigs and CAs.
type loads map[load]error

type load struct {
	by   int
	path string
}

func (l loads) load(by int, path string) error {
	key := load{by, path}
	err, done := l[key]
	if !done {
		err = namedFiles[by].load(path)
		l[key] = err
	}
	return err
}

// checkFile checks what one argument names, if that is a file.
func (l loads) checkFile(name string, a program.Arg) error {
	by := namedBy(a.Key)
	n, known := named{}, by >= 0
	if known {
		n = namedFiles[by]
	}
	info, err := os.Stat(a.Value)
	if a.Value == "" || !known && (err != nil || !info.Mode().IsRegular() || !strings.HasPrefix(a.Value, "/")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: --%s: %w", name, a.Key, err)
	}
	if open := info.Mode().Perm() & 0o006; open != 0 && (n.secret || namesPEM(a.Key) && holdsKey(a.Value)) {
		return advice.With(fmt.Errorf("%s: --%s=%s: a secret that is readable or writable by others (mode %04o)", name, a.Key, a.Value, info.Mode().Perm()), "chmod 600 "+a.Value)
	}
	if n.load == nil {
		return nil
	}
	if err := l.load(by, a.Value); err != nil {
		return advice.With(fmt.Errorf("%s: --%s=%s: %w", name, a.Key, a.Value, err), "correct the file, or name another one")
	}
	return nil
}

// namedBy is the index in namedFiles of the files that a flag names, or -1.
func namedBy(key string) int {
	return slices.IndexFunc(namedFiles, func(n named) bool { return slices.Contains(n.keys, key) })
}

// namesPEM reports whether a flag names a file that may hold a private key by mistake.
func namesPEM(key string) bool {
	for _, part := range []string{"cert", "-ca", "key", "certificate"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	return false
}

func holdsKey(path string) bool {
	data, err := os.ReadFile(path)
	return err == nil && pki.HoldsPrivateKey(data)
}

// checkPair loads a certificate and its key as a TLS server or client does. A missing half
// is left to the program.
func checkPair(name string, cert program.Arg, key string) error {
	if cert.Value == "" || key == "" {
		return nil
	}
	if _, err := tls.LoadX509KeyPair(cert.Value, key); err != nil {
		return advice.With(fmt.Errorf("%s: --%s=%s and %s: %w", name, cert.Key, cert.Value, key, err), "name a certificate and the key that belongs to it")
	}
	return nil
}

func loadCAs(path string) error {
	_, err := certutil.CertsFromFile(path)
	return err
}

// loadAdmission reads the file as AdmissionOptions.ApplyTo does, with the same scheme.
func loadAdmission(path string) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{apiserverapi.AddToScheme, apiserverv1alpha1.AddToScheme, apiserverv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	_, err := admission.ReadAdmissionConfiguration(nil, path, scheme)
	return err
}
