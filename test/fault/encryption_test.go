package fault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

const (
	encryptionFile = "encryption-config.yaml"
	rotationKey    = "/kthwd/encryption/rotation"

	// shortRequests shortens the pause between the two proofs, which is the longest request.
	shortRequests = "--kube-apiserver-arg=request-timeout=10s"
)

// storeSecrets makes secrets with a known content.
func storeSecrets(t *testing.T, client kubernetes.Interface, prefix string, n int) {
	t.Helper()
	for i := range n {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", prefix, i)}, StringData: map[string]string{"n": fmt.Sprint(i)}}
		kthwtest.WaitFor(t, "a secret to be stored", soon, func() error {
			_, err := client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) { // by an attempt that was not answered in time
				return nil
			}
			return err
		})
	}
}

// readSecrets wants each of them with its content, from etcd and not from a cache.
func readSecrets(t *testing.T, client kubernetes.Interface, prefix string, n int) {
	t.Helper()
	for i := range n {
		kthwtest.WaitFor(t, fmt.Sprintf("secret %d", i), soon, func() error {
			s, err := client.CoreV1().Secrets("default").Get(t.Context(), fmt.Sprintf("%s-%d", prefix, i), metav1.GetOptions{})
			if cannotDecrypt(err) || err == nil && string(s.Data["n"]) != fmt.Sprint(i) {
				t.Fatalf("secret %d: got %v, %v", i, s.Data, err)
			}
			return err
		})
	}
}

// cannotDecrypt recognises the errors of an API server without the key of a value.
func cannotDecrypt(err error) bool {
	if !apierrors.IsInternalError(err) {
		return false
	}
	for _, said := range []string{"matching prefix", "transform", "decrypt", "encrypt"} {
		if strings.Contains(err.Error(), said) {
			return true
		}
	}
	return false
}

// storedWith counts the secrets in etcd by their prefix.
func storedWith(t *testing.T, etcd *clientv3.Client) map[string]int {
	t.Helper()
	answer, err := etcd.Get(t.Context(), "/registry/secrets/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, kv := range answer.Kvs {
		parts := strings.SplitN(string(kv.Value), ":", 6)
		if len(parts) < 6 || parts[0] != "k8s" {
			all["plain"]++
			continue
		}
		all[parts[2]+" "+parts[4]]++
	}
	return all
}

// busy creates, changes and reads secrets until stop, and counts what could not be read.
type busy struct {
	stop       func()
	unreadable atomic.Int64
	done       atomic.Int64
	said       atomic.Value
}

func startBusy(t *testing.T, clients ...kubernetes.Interface) *busy {
	ctx, cancel := context.WithCancel(t.Context())
	b := &busy{}
	var wait sync.WaitGroup
	for n, client := range clients {
		wait.Go(func() {
			secrets := client.CoreV1().Secrets("default")
			for i := 0; ctx.Err() == nil; i++ {
				breathe(ctx)
				name := fmt.Sprintf("busy-%d-%d", n, i%20)
				s, err := secrets.Get(ctx, name, metav1.GetOptions{})
				switch {
				case apierrors.IsNotFound(err):
					_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				case err == nil:
					s.Data = map[string][]byte{"i": fmt.Append(nil, i)}
					_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
				}
				if cannotDecrypt(err) {
					b.unreadable.Add(1)
					b.said.Store(err.Error())
				}
				b.done.Add(1)
			}
		})
	}
	b.stop = func() { cancel(); wait.Wait() }
	t.Cleanup(b.stop)
	return b
}

func (b *busy) check(t *testing.T) {
	t.Helper()
	b.stop()
	if n := b.unreadable.Load(); n > 0 {
		t.Errorf("%d of %d requests met a secret that could not be read or written, such as: %v", n, b.done.Load(), b.said.Load())
	}
}

func fileMode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

// The key of a running controller is rotated while secrets are written: nothing is
// unreadable at any moment, and etcd's bytes have the new key alone in the end.
func TestEncryptionRotate(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{shortRequests}})
	client, etcd := c.Client(t), c.Etcd(t)
	const n = 100
	storeSecrets(t, client, "s", n)
	file := filepath.Join(c.Dir, encryptionFile)
	before := fileText(t, file)

	code, out := verb(t, c, "encryption", "rotate", "--plan", "--provider=aesgcm")
	if code != 0 || !strings.Contains(out, "secretbox key1") || !strings.Contains(out, "aesgcm key2") {
		t.Errorf("--plan: got exit code %d:\n%s", code, out)
	}
	for _, tt := range [][]string{
		{"no rotation of the encryption key is under way", "encryption", "resume"},
		{"no rotation of the encryption key is under way", "encryption", "abort"},
		{`kthwd makes no keys for the provider "rot13"`, "encryption", "rotate", "--provider=rot13"},
	} {
		refuses(t, c, tt[1:], tt[0])
	}
	if string(fileText(t, file)) != string(before) {
		t.Error("the file has changed before the rotation")
	}

	b := startBusy(t, client)
	code, out = verb(t, c, "encryption", "rotate", "--provider=aesgcm")
	if code != 0 || !strings.Contains(out, "backup  ") || !strings.Contains(out, "done  secretbox key1 → aesgcm key2") {
		t.Fatalf("rotate: got exit code %d:\n%s", code, out)
	}
	b.check(t)
	if got := storedWith(t, etcd); len(got) != 1 || got["aesgcm key2"] < n {
		t.Errorf("in etcd: got %v", got)
	}
	readSecrets(t, client, "s", n)
	after := string(fileText(t, file))
	if strings.Contains(after, "key1") && strings.Contains(after, "name: key1") || !strings.Contains(after, "name: key2") || fileMode(t, file) != 0o600 {
		t.Errorf("the file has the mode %v:\n%s", fileMode(t, file), strings.ReplaceAll(after, "secret:", "…"))
	}
	if _, err := os.Stat(file + ".next"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of the last stage is still there: %v", err)
	}
	code, out = verb(t, c, "encryption", "status")
	if code != 0 || !strings.Contains(out, "none; the last one, secretbox key1 → aesgcm key2") || !strings.Contains(out, "aesgcm key2 ") {
		t.Errorf("status: got exit code %d:\n%s", code, out)
	}
	noKeyInState(t, etcd, after)
	archived(t, c, string(before))

	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: []string{shortRequests}})
	readSecrets(t, c.Client(t), "s", n)
	for _, kind := range []string{"encryption_file", "encryption_rotation", "file_misfit"} {
		if r := mustStatus(t, c); findingSays(r, kind, "") {
			t.Errorf("after a restart: got the findings %+v", r.Findings)
		}
	}
}

// noKeyInState wants no key of the file below /kthwd in etcd.
func noKeyInState(t *testing.T, etcd *clientv3.Client, file string) {
	t.Helper()
	answer, err := etcd.Get(t.Context(), "/kthwd/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(file) {
		_, secret, ok := strings.Cut(line, "secret: ")
		for _, kv := range answer.Kvs {
			if ok && strings.Contains(string(kv.Value), strings.TrimSpace(secret)) {
				t.Errorf("%s in etcd has the key", kv.Key)
			}
		}
	}
}

// archived wants the archive from before the rotation to have the keys of its time.
func archived(t *testing.T, c *kthwtest.Controller, before string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(c.Dir, "kept", "before-encryption-rotate", "*.kthwd"))
	if err != nil || len(all) != 1 {
		t.Fatalf("archives: got %v, %v", all, err)
	}
	out, err := exec.Command("tar", "-xOf", all[0], "files/"+encryptionFile).Output()
	if err != nil || string(out) != before {
		t.Errorf("the archive has another encryption configuration than there was then: %v", err)
	}
}

// killAtStage kills the controller when the rotation enters a stage. It returns the state of that
// stage, and the file of the rewrite if that has come: the rotation may be faster than the kill.
func killAtStage(t *testing.T, c *kthwtest.Controller, etcd *clientv3.Client, stage string) (state, file []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	watch := etcd.Watch(ctx, rotationKey)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = exec.CommandContext(ctx, kthwtest.Binary(t), "encryption", "rotate", "--without-backup", "--config=", "--data-dir="+c.Dir).Run()
	}()
	for answer := range watch {
		for _, e := range answer.Events {
			var s struct{ Stage string }
			if json.Unmarshal(e.Kv.Value, &s) == nil && s.Stage == "rewrite" {
				file = fileText(t, filepath.Join(c.Dir, encryptionFile))
			}
			if s.Stage == stage {
				c.Signal(t, syscall.SIGKILL)
				c.Wait(t, soon)
				cancel()
				<-done
				return e.Kv.Value, file
			}
		}
	}
	t.Fatalf("the rotation has not come to the stage %s", stage)
	return nil, nil
}

// A controller that is killed in any stage leaves every secret readable, says that the
// rotation has stopped, and ends it when it is told to. An abort leads back, and a key that a
// value needs is not dropped.
func TestEncryptionKilled(t *testing.T) {
	kthwtest.LongTurn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{shortRequests}})
	const n = 30
	storeSecrets(t, c.Client(t), "s", n)
	file, secret := filepath.Join(c.Dir, encryptionFile), "/registry/secrets/default/s-0"
	for _, tt := range []struct{ stage, verb, then string }{
		{"read", "resume", "secretbox key2"}, {"rewrite", "abort", "secretbox key2"}, {"write", "resume", "secretbox key4"}, {"drop", "resume", "secretbox key5"},
	} {
		old, err := c.Etcd(t).Get(t.Context(), secret)
		if err != nil || len(old.Kvs) != 1 {
			t.Fatalf("got %v, %v", old, err)
		}
		state, both := killAtStage(t, c, c.Etcd(t), tt.stage)
		if tt.stage == "drop" {
			edit(t, file, string(both))
		}
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: []string{shortRequests}})
		if tt.stage == "drop" { // has just begun, and a value of the old key is back: it is written anew first
			for key, value := range map[string][]byte{rotationKey: state, secret: old.Kvs[0].Value} {
				if _, err := c.Etcd(t).Put(t.Context(), key, string(value)); err != nil {
					t.Fatal(err)
				}
			}
		}
		readSecrets(t, c.Client(t), "s", n)
		kthwtest.WaitFor(t, "the finding", soon, func() error {
			if r := mustStatus(t, c); !findingSays(r, "encryption_rotation", "has stopped") {
				return fmt.Errorf("got %+v", r.Findings)
			}
			return nil
		})
		refuses(t, c, []string{"encryption", "rotate", "--without-backup"}, "a rotation has not ended", "kthwd encryption resume")
		// The lease of the process that died may last for some seconds.
		kthwtest.WaitFor(t, "kthwd encryption "+tt.verb, soon, func() error {
			if code, out := verb(t, c, "encryption", tt.verb); code != 0 {
				return errors.New(out)
			}
			return nil
		})
		if got := storedWith(t, c.Etcd(t)); len(got) != 1 || got[tt.then] < n {
			t.Fatalf("%s after a kill in stage %s: in etcd %v, want %s", tt.verb, tt.stage, got, tt.then)
		}
		readSecrets(t, c.Client(t), "s", n)
	}
}

// Three controllers: one that is away stops the rotation and is named, another one than began
// it ends it, and a controller that comes back with the old key alone is not admitted.
func TestEncryptionOfThree(t *testing.T) {
	endToEnd(t, "TestEncryptionRotate and TestEncryptionKilled rotate the key of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	m.args = append(m.args, shortRequests)
	all := m.startAll(t)
	const n = 50
	storeSecrets(t, direct(t, all[0]), "s", n)
	old := fileText(t, filepath.Join(all[2].Dir, encryptionFile))

	m.refusesWithoutC2(t, &all, "encryption", "rotate", "--without-backup")

	b := startBusy(t, direct(t, all[0]), direct(t, all[1]))
	watch := all[1].Etcd(t).Watch(t.Context(), rotationKey)
	rotated := make(chan string, 1)
	go func() {
		out, _ := exec.CommandContext(t.Context(), kthwtest.Binary(t), "encryption", "rotate", "--config=", "--data-dir="+all[0].Dir).CombinedOutput()
		rotated <- string(out)
	}()
	for answer := range watch {
		var s struct{ Stage string }
		if len(answer.Events) > 0 && json.Unmarshal(answer.Events[0].Kv.Value, &s) == nil && s.Stage == "rewrite" {
			break
		}
	}
	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	if out := <-rotated; !strings.Contains(out, "has stopped: c2: ") || !strings.Contains(out, "kthwd encryption resume") {
		t.Fatalf("the rotation without c2:\n%s", out)
	}
	kthwtest.WaitFor(t, "the finding on another controller", soon, func() error {
		if r := mustStatus(t, all[1]); !findingSays(r, "encryption_rotation", "has stopped") {
			return fmt.Errorf("got %+v", r.Findings)
		}
		return nil
	})
	// As one that was restored from a backup of before, or has joined with an older file.
	file := filepath.Join(all[2].Dir, encryptionFile)
	is := string(fileText(t, file))
	edit(t, file, string(old))
	restored := m.start(t, 2)
	if code := restored.Wait(t, soon); code != 1 || !strings.Contains(restored.Log.String(), "lacks secretbox key2, with which other controllers may write") {
		t.Errorf("with the file from before the rotation: got exit code %d, log:\n%s", code, restored.Log.Tail(20))
	}
	edit(t, file, is)
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
	if code, out := verb(t, all[1], "encryption", "resume"); code != 0 {
		t.Fatalf("resume on c1: got exit code %d:\n%s", code, out)
	}
	b.check(t)
	now := fileText(t, filepath.Join(all[0].Dir, encryptionFile))
	for i, c := range all {
		if string(fileText(t, filepath.Join(c.Dir, encryptionFile))) != string(now) {
			t.Errorf("c%d has another file", i)
		}
		readSecrets(t, direct(t, c), "s", n)
		kthwtest.WaitFor(t, "no file to be kept", soon, func() error {
			if _, err := os.Stat(filepath.Join(c.Dir, encryptionFile+".next")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("c%d: got %v", i, err)
			}
			return nil
		})
	}
	if got := storedWith(t, all[0].Etcd(t)); len(got) != 1 || got["secretbox key2"] < n {
		t.Errorf("in etcd: got %v", got)
	}

	all[2].Signal(t, syscall.SIGTERM)
	all[2].Wait(t, soon)
	edit(t, filepath.Join(all[2].Dir, encryptionFile), string(old))
	stranger := m.start(t, 2)
	if code := stranger.Wait(t, soon); code != 1 || !strings.Contains(stranger.Log.String(), "not that of the other controllers") {
		t.Errorf("with the dropped key: got exit code %d", code)
	}
}

// direct is a client of one controller, past the balancer.
func direct(t *testing.T, c *kthwtest.Controller) kubernetes.Interface {
	t.Helper()
	config := c.RESTConfig(t)
	config.Host = fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
	return kubernetes.NewForConfigOrDie(config)
}

// edit replaces a file as an editor does.
func edit(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file+".tmp", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		t.Fatal(err)
	}
}

// A file that is edited by hand is used only if it opens all that is stored; what is wrong
// is named, and the API server goes on with the file from before.
func TestEncryptionEdited(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := c.Client(t)
	storeSecrets(t, client, "s", 5)
	file := filepath.Join(c.Dir, encryptionFile)
	good := string(fileText(t, file))
	key := make([]byte, 32)
	rand.Read(key)
	fresh := base64.StdEncoding.EncodeToString(key)
	at := strings.Index(good, "secret: ") + len("secret: ")
	old := good[at : at+44]
	for name, tt := range map[string]struct{ content, want string }{
		"another key of the same name": {strings.Replace(good, old, fresh, 1), "would make"},
		"another key":                  {strings.Replace(strings.Replace(good, old, fresh, 1), "name: key1", "name: key2", 1), "written with the key secretbox key1"},
		"a key of the wrong length":    {strings.Replace(good, old, "c2hvcnQ=", 1), "secret is not of the expected length"},
		"no YAML":                      {"{", "not loaded"},
		"another resource":             {strings.Replace(good, "- secrets", "- configmaps", 1), "would make"},
		"a key server without answer": {strings.Replace(good, "    providers:\n", "    providers:\n      - kms: {apiVersion: v2, name: vault, endpoint: 'unix:///nowhere/kms.sock', timeout: 1s}\n", 1),
			"a key server does not answer"},
	} {
		edit(t, file, tt.content)
		kthwtest.WaitFor(t, name+": the finding", soon, func() error {
			if r := mustStatus(t, c); !findingSays(r, "encryption_file", tt.want) {
				return fmt.Errorf("got %+v", r.Findings)
			}
			return nil
		})
		if strings.Contains(c.Log.String(), fresh) || strings.Contains(c.Log.String(), "c2hvcnQ=") {
			t.Errorf("%s: the log has a key", name)
		}
		readSecrets(t, client, "s", 5)
		if code, out := verb(t, c, "encryption", "rotate", "--without-backup"); code == 0 {
			t.Errorf("%s: a rotation begins:\n%s", name, out)
		}
		edit(t, file, good)
		kthwtest.WaitFor(t, name+": the finding to end", soon, func() error {
			if r := mustStatus(t, c); findingSays(r, "encryption_file", "") {
				return fmt.Errorf("got %+v", r.Findings)
			}
			return nil
		})
	}

	changedByHand(t, c, client, file, old, fresh)
}

// changedByHand changes the key of a running controller by edits of its file that fit.
func changedByHand(t *testing.T, c *kthwtest.Controller, client kubernetes.Interface, file, old, fresh string) {
	t.Helper()
	good := string(fileText(t, file))
	// One that fits is used at once, and the cluster knows its keys: without that, no controller
	// could start once the old one is out.
	both := strings.Replace(good, "            - name: key1\n", "            - name: key9\n              secret: "+fresh+"\n            - name: key1\n", 1)
	edit(t, file, both)
	kthwtest.WaitFor(t, "the new key to be used", soon, func() error {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "new-"}}
		if _, err := client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			return err
		}
		if got := storedWith(t, c.Etcd(t)); got["secretbox key9"] == 0 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
	readSecrets(t, client, "s", 5)
	kthwtest.WaitFor(t, "the keys to be known", soon, func() error {
		answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/fingerprints")
		if err != nil || len(answer.Kvs) != 1 {
			return fmt.Errorf("got %v, %v", answer, err)
		}
		var known struct{ Files map[string][]string }
		if err := json.Unmarshal(answer.Kvs[0].Value, &known); err != nil || len(known.Files[encryptionFile]) != 2 {
			return fmt.Errorf("got %v, %v", known, err)
		}
		return nil
	})

	// Nothing is lost by one without the old key when no value has that.
	kthwtest.WaitFor(t, "all secrets to have the new key", soon, func() error {
		all, err := client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})
		for i := 0; err == nil && i < len(all.Items); i++ {
			_, err = client.CoreV1().Secrets(all.Items[i].Namespace).Update(t.Context(), &all.Items[i], metav1.UpdateOptions{})
		}
		if got := storedWith(t, c.Etcd(t)); err != nil || got["secretbox key1"] > 0 {
			return fmt.Errorf("got %v, %v", got, err)
		}
		return nil
	})
	edit(t, file, strings.Replace(both, "            - name: key1\n              secret: "+old+"\n", "", 1))
	kthwtest.WaitFor(t, "the file to be used", soon, func() error {
		code, out := verb(t, c, "encryption", "status")
		if r := mustStatus(t, c); code != 0 || !strings.Contains(out, "uses secretbox key9, identity") || !findingSays(r, "file_changed", "fits the other files") || findingSays(r, "file_misfit", "") {
			return fmt.Errorf("got exit code %d, %+v:\n%s", code, r.Findings, out)
		}
		return nil
	})
	readSecrets(t, client, "s", 5)
}

func fileText(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
