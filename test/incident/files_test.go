package incident

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// TestFilesReplaced has files replaced while kthwd runs, and between two runs. It stops with one
// that is not the one in use.
func TestFilesReplaced(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	filesReplaced(t, c)
	tokenKeysReplaced(t, c)
}

// C2 and C7: files are replaced while kthwd runs, and put back.
func filesReplaced(t *testing.T, c *kthwtest.Controller) {
	here, other := pki.Layout{Dir: c.Dir}, pki.Layout{Dir: filepath.Join(t.TempDir(), "other")}
	if _, err := pki.Ensure(other, pki.Spec{Addresses: []string{"127.0.0.1"}, Server: "https://127.0.0.1:6443"}); err != nil {
		t.Fatal(err)
	}
	// Without a value of the key, another one loses nothing.
	stored := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "stored"}}
	if _, err := c.Client(t).CoreV1().Secrets("default").Create(t.Context(), stored, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		paths []func(pki.Layout) string
		parts []string
	}{
		{"another CA", []func(pki.Layout) string{pki.Layout.CA}, []string{"ca.pem changed at ", "is not the CA of kubernetes.pem, "}},
		{"another token key pair", []func(pki.Layout) string{certOf(pki.NameServiceAccount), keyOf(pki.NameServiceAccount)},
			[]string{"service-account.pem changed at ", "lacks the key in use"}},
		{"another key", []func(pki.Layout) string{keyOf(pki.NameKubernetes)}, []string{"kubernetes-key.pem changed at ", "is not the key of kubernetes.pem"}},
		{"another encryption key", []func(pki.Layout) string{pki.Layout.EncryptionConfig}, []string{"encryption-config.yaml changed at ", "lacks the key in use"}},
	} {
		old := map[string][]byte{}
		for _, path := range tt.paths {
			old[path(here)] = replaceFile(t, path(here), path(other))
		}
		f := finding(t, c, "file_misfit", tt.parts...)
		if f.Health != status.Degraded || !strings.Contains(f.Do, "put the old ") {
			t.Errorf("%s: got %+v; want health degraded, and advice", tt.name, f)
		}
		if tt.name == "another CA" {
			look(t, c, incident{
				name: "C2 ca.pem replaced", kind: "file_misfit", bridge: "-",
				cause: "is not the CA of kubernetes.pem, ", do: "put the old ca.pem back in " + c.Dir,
			})
		}
		for path, data := range old {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		noFinding(t, c, "file_misfit")
	}
}

func certOf(name string) func(pki.Layout) string {
	return func(l pki.Layout) string { return l.Cert(name) }
}
func keyOf(name string) func(pki.Layout) string {
	return func(l pki.Layout) string { return l.Key(name) }
}

// replaceFile returns the content before.
func replaceFile(t *testing.T, path, by string) []byte {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(by)
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return before
}

// C7: the pair that signs tokens is replaced between two runs. The start after that says
// so, and the next one too.
func tokenKeysReplaced(t *testing.T, c *kthwtest.Controller) {
	here, other := pki.Layout{Dir: c.Dir}, pki.Layout{Dir: filepath.Join(t.TempDir(), "other")}
	if err := os.Mkdir(other.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []func(pki.Layout) string{pki.Layout.CA, pki.Layout.CAKey} {
		data, err := os.ReadFile(path(here))
		if err == nil {
			err = os.WriteFile(path(other), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pki.Ensure(other, pki.Spec{Addresses: []string{"127.0.0.1"}, Server: "https://127.0.0.1:6443"}); err != nil {
		t.Fatal(err)
	}
	noFinding(t, c, "keys_replaced")
	old := tokenOf(t, c, "kube-system", "web")
	for i := range 2 {
		c.Signal(t, syscall.SIGTERM)
		if code := c.Wait(t, soon); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		if i == 0 {
			for _, path := range []func(pki.Layout) string{certOf(pki.NameServiceAccount), keyOf(pki.NameServiceAccount)} {
				replaceFile(t, path(here), path(other))
			}
		}
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
		if i == 0 {
			comeWith(t, c, old)
		}
		f := finding(t, c, "keys_replaced", "tokens from before ", " are refused: service-account.pem holds another key")
		if f.Health != status.Degraded {
			t.Errorf("got %+v; want health degraded", f)
		}
		if i == 1 {
			look(t, c, incident{
				name: "C7 token key pair replaced", kind: "keys_replaced", bridge: "-",
				cause: " are refused: service-account.pem holds another key",
				do:    "put the old service-account.pem and its key back, or append the old public key to " + here.Cert(pki.NameServiceAccount),
			})
		}
	}
	replaceFile(t, here.Key(pki.NameKubernetes), other.Key(pki.NameKubernetes))
	finding(t, c, "file_misfit", "kubernetes-key.pem changed at ")
	stop(t, c)
}

// tokenOf makes a service account, and returns a token of it.
func tokenOf(t *testing.T, c *kthwtest.Controller, namespace, name string) (token string) {
	t.Helper()
	accounts, hour := c.Client(t).CoreV1().ServiceAccounts(namespace), int64(3600)
	kthwtest.WaitFor(t, "a token of a service account", soon, func() error {
		_, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err // the namespace is made after the start
		}
		made, err := accounts.CreateToken(t.Context(), name,
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
		if err == nil {
			token = made.Status.Token
		}
		return err
	})
	return token
}

// comeWith comes with a token of the keys before, as a pod would, and looks for the name of its user.
func comeWith(t *testing.T, c *kthwtest.Controller, token string) {
	t.Helper()
	config := rest.AnonymousClientConfig(c.RESTConfig(t))
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token of the key before: got %v, want it refused", err)
	}
	f := look(t, c, incident{
		name: "C7 a client with an old token", kind: "tokens_refused", bridge: "-",
		cause: ": 1, of system:serviceaccount:kube-system:web at 127.0.0.1", log: "service account tokens are refused",
		do: "get pods -n kube-system --field-selector spec.serviceAccountName=web",
	})
	if !strings.HasPrefix(f.Text, "tokens from before ") {
		t.Errorf("got %q", f.Text)
	}
	command, _, _ := strings.Cut(f.Do, ";")
	typeCommand(t, command)
	if strings.Contains(c.Log.String(), strings.SplitN(token, ".", 3)[2]) {
		t.Error("the log has the token's signature")
	}
}
