package incident

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

var keyLine = regexp.MustCompile(`(?m)^(\s*)- name: \S+\n\s*secret: (\S+)$`)

// A controller that starts with another encryption key serves nothing, and upstream's health
// check withholds the reason (C6).
func TestAnotherEncryptionKey(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := c.Client(t)
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pw"}, StringData: map[string]string{"password": "hunter2"}}
	if _, err := client.CoreV1().Secrets("shop").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stop(t, c)

	file := filepath.Join(c.Dir, "encryption-config.yaml")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := keyLine.FindStringSubmatch(string(old))
	if found == nil {
		t.Fatalf("no key in %s:\n%s", file, old)
	}
	indent, was := found[1], found[2]
	key := make([]byte, 32)
	rand.Read(key)
	fresh := base64.StdEncoding.EncodeToString(key)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Replace(string(old), was, fresh, 1))

	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, NoWait: true})
	look(t, c, incident{
		name: "C6 another encryption key", kind: "decryption",
		cause: "cannot decrypt secret shop/pw", do: "put the old key back into encryption-config.yaml as the second key, under its old name",
		bridge: "cannot decrypt an object",
		// apiserver/pkg/storage/etcd3/corrupt_obj_deleter.go, which Kubernetes 1.37 uses by default.
		log: "Key: /registry/secrets/shop/pw, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable",
	})
	stop(t, c)

	// As the remedy says. What is stored names its key, so the old one needs its old name.
	write(strings.Replace(string(old), found[0], indent+"- name: another\n"+indent+"  secret: "+fresh+"\n"+found[0], 1))
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
	healthy(t, c, "decryption")
	if got, err := c.Client(t).CoreV1().Secrets("shop").Get(t.Context(), "pw", metav1.GetOptions{}); err != nil || string(got.Data["password"]) != "hunter2" {
		t.Errorf("got %v", err)
	}
}

// stop asks a controller to stop, perhaps in the middle of an incident, and wants it to end in
// order all the same.
func stop(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	if code := c.Wait(t, soon); code != 0 {
		t.Errorf("a stop that was asked for: got exit code %d, want 0; the log ends with\n%s", code, c.Log.Tail(40))
	}
	if said := statusText(t, c); !strings.Contains(said, "the last run: stopped in order") {
		t.Errorf("after a stop that was asked for: got\n%s", said)
	}
}
