package fault

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/kms/pkg/service"

	"kthwd/test/kthwtest"
)

// keyServer is a KMS v2 plugin with a key of its own.
type keyServer struct {
	id     string
	seal   cipher.AEAD
	socket string
	server *service.GRPCService
	ended  chan error
}

func newKeyServer(t *testing.T, id string) *keyServer {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return &keyServer{id: id, seal: seal, socket: filepath.Join(shortDir(t), "s")}
}

// shortDir is a directory whose name leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// beside is a plugin for the same key on another machine.
func (k *keyServer) beside(t *testing.T) *keyServer {
	t.Helper()
	return &keyServer{id: k.id, seal: k.seal, socket: filepath.Join(shortDir(t), "s")}
}

func (k *keyServer) endpoint() string { return "unix://" + k.socket }

func (k *keyServer) start(t *testing.T) {
	t.Helper()
	k.server, k.ended = service.NewGRPCService(k.socket, 5*time.Second, k), make(chan error, 1)
	server, ended := k.server, k.ended
	go func() { ended <- server.ListenAndServe() }()
	t.Cleanup(server.Close)
	kthwtest.WaitFor(t, "the key server", soon, func() error { _, err := os.Stat(k.socket); return err })
}

func (k *keyServer) stop() {
	k.server.Close()
	<-k.ended
	_ = os.Remove(k.socket)
}

// Encrypt implements service.Service, as do the two below.
func (k *keyServer) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	return &service.EncryptResponse{Ciphertext: k.seal.Seal(nil, nil, data, nil), KeyID: k.id}, nil
}

// Decrypt implements service.Service.
func (k *keyServer) Decrypt(_ context.Context, _ string, r *service.DecryptRequest) ([]byte, error) {
	return k.seal.Open(nil, nil, r.Ciphertext, nil)
}

// Status implements service.Service.
func (k *keyServer) Status(context.Context) (*service.StatusResponse, error) {
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: k.id}, nil
}

// atStage runs kthwd encryption rotate, and calls do when the rotation enters a stage. It returns
// what the command has said.
func atStage(t *testing.T, c *kthwtest.Controller, stage string, do func(), args ...string) string {
	t.Helper()
	watch := c.Etcd(t).Watch(t.Context(), rotationKey)
	rotated := make(chan string, 1)
	go func() {
		out, _ := exec.CommandContext(t.Context(), kthwtest.Binary(t), append([]string{"encryption", "rotate", "--without-backup", "--config=", "--data-dir=" + c.Dir}, args...)...).CombinedOutput()
		rotated <- string(out)
	}()
	for {
		select {
		case answer := <-watch:
			for _, e := range answer.Events {
				var s struct{ Stage string }
				if json.Unmarshal(e.Kv.Value, &s) == nil && s.Stage == stage {
					do()
					return <-rotated
				}
			}
		case out := <-rotated:
			t.Fatalf("the rotation has not come to the stage %s: %s", stage, out)
		}
	}
}

// Secrets move to a key server, from there to another one, and back to a key of kthwd's, while
// they are read and written. A key server without an answer is refused before anything changes; one
// that goes away meanwhile stops the rotation, which goes on when it is back.
func TestEncryptionKMS(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{shortRequests}})
	const n = 40
	storeSecrets(t, c.Client(t), "s", n)
	file := filepath.Join(c.Dir, encryptionFile)
	first, second := newKeyServer(t, "1"), newKeyServer(t, "2")

	refusesKeyServer(t, c, first.endpoint())
	first.start(t)
	b := startBusy(t, c.Client(t))
	rotated := func(want, stored string, args ...string) {
		t.Helper()
		code, out := verb(t, c, append([]string{"encryption", "rotate", "--without-backup"}, args...)...)
		if code != 0 || !strings.Contains(out, "done  "+want) {
			t.Fatalf("got exit code %d:\n%s", code, out)
		}
		if got := storedWith(t, c.Etcd(t)); len(got) != 1 || got[stored] < n {
			t.Errorf("in etcd: got %v, want %s", got, stored)
		}
	}
	rotated("secretbox key1 → kms vault", "kms vault", "--provider=kms", "--kms-name=vault", "--kms-endpoint="+first.endpoint())
	b.check(t)
	if now := string(fileText(t, file)); strings.Contains(now, "secret:") || !strings.Contains(now, "name: vault") {
		t.Error("the file still has a key")
	}

	// The key that was dropped is no way back into the cluster, and the key server is enough.
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	restart := func() {
		t.Helper()
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: []string{shortRequests}})
		readSecrets(t, c.Client(t), "s", n)
	}
	restart()

	second.start(t)
	b = startBusy(t, c.Client(t))
	out := atStage(t, c, "rewrite", second.stop, "--provider=kms", "--kms-name=vault2", "--kms-endpoint="+second.endpoint())
	if !strings.Contains(out, "has stopped") || !strings.Contains(out, "a key server does not answer") || !strings.Contains(out, "kthwd encryption resume") {
		t.Fatalf("without the key server: got\n%s", out)
	}
	kthwtest.WaitFor(t, "the finding", soon, func() error {
		if r := mustStatus(t, c); !findingSays(r, "encryption_rotation", "a key server does not answer") {
			return fmt.Errorf("got %+v", r.Findings)
		}
		return nil
	})
	second.start(t)
	kthwtest.WaitFor(t, "kthwd encryption resume", soon, func() error {
		if code, out := verb(t, c, "encryption", "resume"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	b.check(t)
	if got := storedWith(t, c.Etcd(t)); len(got) != 1 || got["kms vault2"] < n {
		t.Errorf("in etcd: got %v", got)
	}
	first.stop()
	readSecrets(t, c.Client(t), "s", n)

	b = startBusy(t, c.Client(t))
	rotated("kms vault2 → secretbox key1", "secretbox key1", "--provider=secretbox")
	b.check(t)
	second.stop()
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	restart()

	// A rotation to a key server that is taken back.
	second.start(t)
	var code int
	_ = atStage(t, c, "rewrite", func() { code, out = verb(t, c, "encryption", "abort") }, "--provider=kms", "--kms-name=vault3", "--kms-endpoint="+second.endpoint())
	if got := storedWith(t, c.Etcd(t)); code != 0 || len(got) != 1 || got["secretbox key1"] < n {
		t.Errorf("abort: got exit code %d, in etcd %v:\n%s", code, got, out)
	}
}

// refusesKeyServer wants each wrong request for a key server to be refused, and nothing to change.
func refusesKeyServer(t *testing.T, c *kthwtest.Controller, endpoint string) {
	t.Helper()
	file := filepath.Join(c.Dir, encryptionFile)
	before := string(fileText(t, file))
	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=vault", "--kms-endpoint=" + endpoint}, "a key server does not answer", "start the KMS plugin")
	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=vault"}, "needs a name and the socket", "--kms-endpoint")
	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=key1", "--kms-endpoint=" + endpoint}, "is in use", "--kms-name")
	refuses(t, c, []string{"encryption", "rotate", "--kms-name=vault"}, "are for --provider=kms")
	if answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/encryption/", clientv3.WithPrefix()); err != nil || len(answer.Kvs) > 0 || string(fileText(t, file)) != before {
		t.Errorf("after the refusals: got %v, %v", answer, err)
	}
}

// Three controllers, each with a KMS plugin of its own for the same key. A plugin that is missing
// on one of them is named before anything changes; one that goes away stops the rotation, and
// another controller than began it ends it. The values of a key server are proven on the way
// back, too, where a controller is killed, and one with the file of another time is not admitted.
func TestKMSOfThree(t *testing.T) {
	endToEnd(t, "TestEncryptionKMS moves the secrets of one controller")
	kthwtest.Turn(t, 3)
	first := newKeyServer(t, "1")
	plugins := []*keyServer{first, first.beside(t), first.beside(t)}
	m := makeCluster(t)
	m.args = append(m.args, shortRequests)
	for _, k := range plugins {
		m.homes = append(m.homes, filepath.Dir(k.socket))
	}
	all := m.startAll(t)
	const n = 40
	storeSecrets(t, direct(t, all[0]), "s", n)
	files := func() (all []string) {
		for i := range 3 {
			all = append(all, string(fileText(t, filepath.Join(m.dir, fmt.Sprintf("c%d", i), encryptionFile))))
		}
		return all
	}
	before := files()
	// One file for all, whose socket is another one on each: as on machines.
	to := []string{"--provider=kms", "--kms-name=vault", "--kms-endpoint=unix:///proc/self/cwd/s"}

	plugins[0].start(t)
	plugins[1].start(t)
	refuses(t, all[0], append([]string{"encryption", "rotate"}, to...), "c2: ", "a key server does not answer", "start the KMS plugin")
	if answer, err := all[0].Etcd(t).Get(t.Context(), "/kthwd/encryption/", clientv3.WithPrefix()); err != nil || len(answer.Kvs) > 0 || !slices.Equal(files(), before) {
		t.Errorf("after the refusal: got %v, %v", answer, err)
	}

	plugins[2].start(t)
	b := startBusy(t, direct(t, all[0]), direct(t, all[1]))
	out := atStage(t, all[0], "rewrite", plugins[2].stop, to...)
	if !strings.Contains(out, "has stopped: c2: ") || !strings.Contains(out, "a key server does not answer") || !strings.Contains(out, "kthwd encryption resume") {
		t.Fatalf("without the plugin of c2: got\n%s", out)
	}
	b.check(t)
	kthwtest.WaitFor(t, "the finding on another controller", soon, func() error {
		if r := mustStatus(t, all[1]); !findingSays(r, "encryption_rotation", "has stopped") {
			return fmt.Errorf("got %+v", r.Findings)
		}
		return nil
	})
	plugins[2].start(t)
	resumes(t, all[1])
	m.keptWith(t, all, "kms vault", n)
	if now := files(); strings.Contains(now[0], "secret:") || now[1] != now[0] || now[2] != now[0] {
		t.Error("a file still has a key, or the files differ")
	}

	withKMS := files()[2]
	all[2].Signal(t, syscall.SIGTERM)
	all[2].Wait(t, soon)
	edit(t, filepath.Join(all[2].Dir, encryptionFile), before[2])
	m.notAdmitted(t, "not that of the other controllers")
	edit(t, filepath.Join(all[2].Dir, encryptionFile), withKMS)
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
	readSecrets(t, direct(t, all[2]), "s", n) // which it has never seen: the plugin opens them

	b = startBusy(t, direct(t, all[0]), direct(t, all[1]))
	killInStage(t, all[:], 1, 2, 0, "write", "secretbox", 0)
	b.check(t)
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
	resumes(t, all[1])
	for _, k := range plugins {
		k.stop()
	}
	m.keptWith(t, all, "secretbox key1", n)
	all[2].Signal(t, syscall.SIGTERM)
	all[2].Wait(t, soon)
	edit(t, filepath.Join(all[2].Dir, encryptionFile), withKMS)
	m.notAdmitted(t, "not that of the other controllers")
}

// resumes ends the rotation that has stopped. The lease of a process that died may last for some
// seconds.
func resumes(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	kthwtest.WaitFor(t, "kthwd encryption resume", soon, func() error {
		code, out := verb(t, c, "encryption", "resume")
		if code != 0 && !strings.Contains(out, "no rotation of the encryption key is under way") {
			return errors.New(out)
		}
		return nil
	})
}

// keptWith wants all values to be of one key, and each controller to read them.
func (m *made) keptWith(t *testing.T, all [3]*kthwtest.Controller, key string, n int) {
	t.Helper()
	if got := storedWith(t, all[0].Etcd(t)); len(got) != 1 || got[key] < n {
		t.Errorf("in etcd: got %v, want %s", got, key)
	}
	for _, c := range all {
		readSecrets(t, direct(t, c), "s", n)
	}
}

// notAdmitted starts controller 2, which must end with that error.
func (m *made) notAdmitted(t *testing.T, want string) {
	t.Helper()
	stranger := m.start(t, 2)
	if code := stranger.Wait(t, soon); code != 1 || !strings.Contains(stranger.Log.String(), want) {
		t.Errorf("got exit code %d, want %q in the log:\n%s", code, want, stranger.Log.Tail(20))
	}
}
