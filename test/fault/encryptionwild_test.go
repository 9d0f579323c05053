package fault

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// A file that names all resources with a wildcard: what is stored without a key is counted, a file
// that would lose it is refused, a rotation gives it a key, and every resource can be read then. The
// API server's own records, which no file reaches, stay without one: it would not start again.
func TestEncryptionWildcard(t *testing.T) {
	kthwtest.Turn(t, 1)
	address := ownAddress(t) // with one that is no loopback the API server has a lease as an endpoint
	c := kthwtest.Start(t, kthwtest.Options{Address: address, Args: []string{shortRequests}})
	storeSecrets(t, c.Client(t), "s", 5)
	file := filepath.Join(c.Dir, encryptionFile)
	everything := strings.Replace(string(fileText(t, file)), "- secrets", "- '*.*'", 1)

	edit(t, file, strings.Replace(everything, "      - identity: {}\n", "", 1))
	kthwtest.WaitFor(t, "the finding", soon, func() error {
		if r := mustStatus(t, c); !findingSays(r, "encryption_file", "written without a key, and the file lacks identity") {
			return fmt.Errorf("got %+v", r.Findings)
		}
		return nil
	})
	edit(t, file, everything)
	kthwtest.WaitFor(t, "the file to be used", soon, func() error {
		if r := mustStatus(t, c); findingSays(r, "encryption_file", "") {
			return fmt.Errorf("got %+v", r.Findings)
		}
		if code, out := verb(t, c, "encryption", "status"); code != 0 || strings.Contains(out, "another file than") {
			return errors.New(out)
		}
		return nil
	})
	if n := len(plainKeys(t, c)); n < 50 {
		t.Fatalf("only %d values without a key", n)
	}
	if code, out := verb(t, c, "encryption", "status"); code != 0 || strings.Contains(out, "plain 0") {
		t.Errorf("status: got exit code %d:\n%s", code, out)
	}
	b := startBusy(t, c.Client(t))
	if code, out := verb(t, c, "encryption", "rotate", "--without-backup"); code != 0 {
		t.Fatalf("rotate: got exit code %d:\n%s", code, out)
	}
	b.check(t)
	onlyOwnArePlain(t, plainKeys(t, c), address)
	if code, out := verb(t, c, "encryption", "status"); code != 0 || !strings.Contains(out, "plain 0") {
		t.Errorf("status: got exit code %d:\n%s", code, out)
	}
	readable := func() {
		t.Helper()
		for _, said := range []string{"matching prefix", "unable to transform", "not transformable", "identity transformer", "cannot decrypt"} {
			if strings.Contains(c.Log.String(), said) {
				t.Errorf("the log says %q:\n%s", said, c.Log.Tail(30))
			}
		}
	}
	readable()
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	c = kthwtest.Start(t, kthwtest.Options{Address: address, Dir: c.Dir, Ports: &c.Ports, Args: []string{shortRequests}})
	readSecrets(t, c.Client(t), "s", 5)
	readAll(t, c.Client(t))
	readable()
}

// plainKeys are those of the values below /registry that are stored without an encryption key.
func plainKeys(t *testing.T, c *kthwtest.Controller) (keys []string) {
	t.Helper()
	answer, err := c.Etcd(t).Get(t.Context(), "/registry/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range answer.Kvs {
		if !strings.HasPrefix(string(kv.Value), "k8s:enc:") {
			keys = append(keys, string(kv.Key))
		}
	}
	return keys
}

// onlyOwnArePlain wants the API server's own records among keys, and no other.
func onlyOwnArePlain(t *testing.T, keys []string, address string) {
	t.Helper()
	own := []string{"/registry/masterleases/", "/registry/peerserverleases/", "/registry/ranges/"}
	for _, place := range own {
		if address == "127.0.0.1" && place == "/registry/masterleases/" { // upstream makes no endpoint of loopback
			continue
		}
		if !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, place) }) {
			t.Errorf("%s: nothing without a key in it, of %v", place, keys)
		}
	}
	for _, key := range keys {
		if !slices.ContainsFunc(own, func(place string) bool { return strings.HasPrefix(key, place) }) {
			t.Errorf("without a key: %s", key)
		}
	}
}

// ownAddress is one of this machine that is no loopback, or 127.0.0.1 if it has no other.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.To4() != nil && ip.IsGlobalUnicast() {
			return ip.String()
		}
	}
	return "127.0.0.1"
}

// readAll lists every resource from etcd.
func readAll(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	lists, err := client.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, list := range lists {
		path := "/apis/" + list.GroupVersion
		if !strings.Contains(list.GroupVersion, "/") {
			path = "/api/" + list.GroupVersion
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || strings.Contains(r.Name, "/") {
				continue
			}
			// Without a resource version the list comes from etcd, or is as new as that.
			err := client.CoreV1().RESTClient().Get().AbsPath(path, r.Name).VersionedParams(&metav1.ListOptions{}, metav1.ParameterCodec).Do(t.Context()).Error()
			if err != nil {
				t.Errorf("%s/%s: %v", path, r.Name, err)
			}
			n++
		}
	}
	if n < 30 {
		t.Errorf("only %d resources", n)
	}
}
