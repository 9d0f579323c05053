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
	dir, err := os.MkdirTemp("", "kms") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &keyServer{id: id, seal: seal, socket: filepath.Join(dir, "s")}
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
	before := string(fileText(t, file))
	first, second := newKeyServer(t, "1"), newKeyServer(t, "2")

	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=vault", "--kms-endpoint=" + first.endpoint()}, "a key server does not answer", "start the KMS plugin")
	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=vault"}, "needs a name and the socket", "--kms-endpoint")
	refuses(t, c, []string{"encryption", "rotate", "--provider=kms", "--kms-name=key1", "--kms-endpoint=" + first.endpoint()}, "is in use", "--kms-name")
	refuses(t, c, []string{"encryption", "rotate", "--kms-name=vault"}, "are for --provider=kms")
	if answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/encryption/", clientv3.WithPrefix()); err != nil || len(answer.Kvs) > 0 || string(fileText(t, file)) != before {
		t.Errorf("after the refusals: got %v, %v", answer, err)
	}

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
