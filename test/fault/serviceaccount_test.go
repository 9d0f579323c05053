package fault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const tokenRotationKey = "/kthwd/service-account/rotation"

var tokenVerb = []string{"pki", "service-account"}

func tokenRotation(args ...string) []string { return append(slices.Clone(tokenVerb), args...) }

// kidOf reads the key ID in a token's header.
func kidOf(t *testing.T, token string) string {
	t.Helper()
	header, _, _ := strings.Cut(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(header)
	var h struct{ Kid string }
	if err != nil || json.Unmarshal(data, &h) != nil {
		t.Fatalf("no token: %v", err)
	}
	return h.Kid
}

// account makes a service account.
func account(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	kthwtest.WaitFor(t, "a service account", soon, func() error {
		_, err := client.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func newToken(ctx context.Context, client kubernetes.Interface, name string) (string, error) {
	r, err := client.CoreV1().ServiceAccounts("default").CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

func mustToken(t *testing.T, client kubernetes.Interface, name string) (token string) {
	t.Helper()
	kthwtest.WaitFor(t, "a token", soon, func() (err error) {
		token, err = newToken(t.Context(), client, name)
		return err
	})
	return token
}

// withToken is a client of one controller with a token alone.
func withToken(t *testing.T, c *kthwtest.Controller, token string) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(c.RESTConfig(t))
	config.Host, config.BearerToken = fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure), token
	config.QPS, config.Burst = -1, -1
	return kubernetes.NewForConfigOrDie(config)
}

// whoAmI is a request that every authenticated user may make.
func whoAmI(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	return err
}

// rereaders ask for a token at one controller and use it at each, again and again, as a pod does that
// reads its file. None may be refused.
type rereaders struct {
	stop          func()
	done, refused atomic.Int64
	keys          sync.Map // of their tokens
	said          atomic.Value
}

func startRereaders(t *testing.T, all ...*kthwtest.Controller) *rereaders {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &rereaders{}
	var wait sync.WaitGroup
	issuers := make([]kubernetes.Interface, len(all))
	for i, c := range all {
		issuers[i] = direct(t, c)
	}
	for i := range all {
		name := fmt.Sprintf("rereader-%d", i)
		account(t, issuers[i], name)
		wait.Go(func() {
			for ; ctx.Err() == nil; breathe(ctx) {
				token, err := newToken(ctx, issuers[i], name)
				if err != nil {
					continue
				}
				r.keys.Store(kidOf(t, token), true)
				for j := range all {
					err := whoAmI(ctx, withToken(t, all[j], token))
					if apierrors.IsUnauthorized(err) {
						r.refused.Add(1)
						r.said.Store(fmt.Sprintf("%s of c%d at c%d: %v", kidOf(t, token)[:8], i, j, err))
					}
					r.done.Add(1)
				}
			}
		})
	}
	r.stop = func() { cancel(); wait.Wait() }
	t.Cleanup(r.stop)
	return r
}

// check ends them. They must have had tokens of so many keys.
func (r *rereaders) check(t *testing.T, keys int) {
	t.Helper()
	r.stop()
	n := 0
	r.keys.Range(func(any, any) bool { n++; return true })
	if r.refused.Load() > 0 || n != keys {
		t.Errorf("%d of %d requests with tokens of %d keys were refused (want %d keys), such as: %v", r.refused.Load(), r.done.Load(), n, keys, r.said.Load())
	}
	t.Logf("%d requests with tokens of %d keys, %d refused", r.done.Load(), n, r.refused.Load())
}

// published are the keys at /openid/v1/jwks.
func published(t *testing.T, client kubernetes.Interface) (ids []string) {
	t.Helper()
	var set struct{ Keys []struct{ Kid string } }
	kthwtest.WaitFor(t, "/openid/v1/jwks", soon, func() error {
		body, err := client.CoreV1().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(t.Context())
		if err == nil {
			err = json.Unmarshal(body, &set)
		}
		return err
	})
	for _, k := range set.Keys {
		ids = append(ids, k.Kid)
	}
	slices.Sort(ids)
	return ids
}

func wantPublished(t *testing.T, client kubernetes.Interface, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := published(t, client); !slices.Equal(got, want) {
		t.Errorf("/openid/v1/jwks has %v, want %v", got, want)
	}
}

// secretToken has kube-controller-manager sign a token for a Secret.
func secretToken(t *testing.T, client kubernetes.Interface, account, name string) string {
	t.Helper()
	s := &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken, ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}}}
	kthwtest.WaitFor(t, "a Secret with a token", soon, func() error {
		_, err := client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		is, err := client.CoreV1().Secrets("default").Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && len(is.Data[corev1.ServiceAccountTokenKey]) == 0 {
			err = errors.New("it has no token yet")
		}
		s.Data = is.Data
		return err
	})
	return string(s.Data[corev1.ServiceAccountTokenKey])
}

// mustVerb runs a verb that must succeed, and say each of these.
func mustVerb(t *testing.T, c *kthwtest.Controller, args []string, want ...string) string {
	t.Helper()
	code, out := verb(t, c, args...)
	if code != 0 {
		t.Fatalf("kthwd %s: got exit code %d:\n%s", strings.Join(args, " "), code, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("kthwd %s does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out
}

func tokenFilesOf(t *testing.T, c *kthwtest.Controller) pki.TokenFiles {
	t.Helper()
	f, err := pki.ReadTokenFiles(pki.Layout{Dir: c.Dir})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The key of tokens is rotated under a client that reads its token again, which is never refused,
// and one that does not, which is named, works until the old key is dropped, and is refused then.
func TestServiceAccountRotate(t *testing.T) {
	kthwtest.Turn(t, 1)
	args := []string{"--kube-apiserver-arg=request-timeout=2s"}
	c := kthwtest.Start(t, kthwtest.Options{Args: args})
	client := c.Client(t)
	// What is sealed with the old key must be believed afterwards.
	mustVerb(t, c, []string{"encryption", "rotate", "--without-backup"}, "done")
	account(t, client, "keeper")
	kept := mustToken(t, client, "keeper")
	keeper := withToken(t, c, kept)
	old, fromSecret := kidOf(t, kept), secretToken(t, client, "keeper", "before")
	wantPublished(t, client, old)
	before := tokenFilesOf(t, c)

	mustVerb(t, c, tokenRotation("rotate", "--plan"), "publish ", "sign ", "watch ", "drop ")
	mustVerb(t, c, tokenRotation("status"), "rotation", "none", "signs with "+old[:8])
	for _, v := range []string{"resume", "drop", "abort"} {
		refuses(t, c, tokenRotation(v), "no rotation of the service account key is under way")
	}
	if is := tokenFilesOf(t, c); string(is.Key) != string(before.Key) || string(is.Public) != string(before.Public) {
		t.Error("the files have changed before the rotation")
	}

	r := startRereaders(t, c)
	mustVerb(t, c, tokenRotation("rotate", "--wait=0s"), "backup  ", "before-service-account-rotate", "signs; tokens of "+old[:8]+" are accepted")
	now := kidOf(t, mustToken(t, client, "keeper"))
	if now == old {
		t.Fatal("the old key signs")
	}
	wantPublished(t, client, old, now)
	if got := kidOf(t, secretToken(t, client, "keeper", "after")); kidOf(t, fromSecret) != old || got != now {
		t.Errorf("kube-controller-manager signs with %s, want %s", got, now)
	}
	kthwtest.WaitFor(t, "the one that keeps its token to be named", soon, func() error {
		if err := whoAmI(t.Context(), keeper); err != nil {
			t.Fatalf("a token of the old key: %v", err)
		}
		if _, out := verb(t, c, tokenRotation("status")...); !strings.Contains(out, "system:serviceaccount:default:keeper from") {
			return errors.New(out)
		}
		if r := mustStatus(t, c); !findingSays(r, "service_account_rotation", "the newest of system:serviceaccount:default:keeper") {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
	refuses(t, c, tokenRotation("drop"), "is still in use", "system:serviceaccount:default:keeper", "--force")
	refuses(t, c, tokenRotation("abort"), "can no longer be aborted")
	refuses(t, c, tokenRotation("rotate"), "a rotation has not ended", "kthwd pki service-account drop")
	mustVerb(t, c, tokenRotation("resume"))
	noTokenKeyInEtcd(t, c)
	if code, out := verb(t, c, tokenRotation("drop", "--wait=1s")...); code != 1 || !strings.Contains(out, "waits  the old key") {
		t.Errorf("drop --wait=1s: got exit code %d:\n%s", code, out)
	}
	c = watchesAnew(t, c, args)

	mustVerb(t, c, tokenRotation("drop", "--force"), "done  ")
	wantPublished(t, client, now)
	kthwtest.WaitFor(t, "the old token to be refused", soon, func() error { // upstream remembers a verdict for 10 s
		if err := whoAmI(t.Context(), keeper); !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v", err)
		}
		if r := mustStatus(t, c); !findingSays(r, "tokens_refused", "system:serviceaccount:default:keeper") {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
	r.check(t, 2)
	mustVerb(t, c, []string{"encryption", "status"}, "none; the last one")
	mustVerb(t, c, tokenRotation("status"), "none; the last one, "+old[:8]+" → "+now[:8])
	noAccountsInEtcd(t, c)
	if f := tokenFilesOf(t, c); !slices.Equal(f.Signing(), []string{now}) || !slices.Equal(f.Accepted(), []string{now}) {
		t.Errorf("the files have %v and %v", f.Signing(), f.Accepted())
	}
	mustVerb(t, c, []string{"pki", "show"}, "service-account.pem") // a public key has no dates that could be over
	startsAgain(t, c, args, mustToken(t, client, "keeper"))
}

// noAccountsInEtcd waits until no record of accounts is left.
func noAccountsInEtcd(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	kthwtest.WaitFor(t, "no record of accounts to be left", soon, func() error {
		answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/service-account/used/", clientv3.WithPrefix())
		if err == nil && len(answer.Kvs) > 0 {
			err = fmt.Errorf("got %v", answer.Kvs)
		}
		return err
	})
}

// watchesAnew restarts a controller that watches the old key: it still names the accounts that have used
// that, and the time since which it has watched without a break.
func watchesAnew(t *testing.T, c *kthwtest.Controller, args []string) *kthwtest.Controller {
	t.Helper()
	const keeper = "system:serviceaccount:default:keeper"
	kthwtest.WaitFor(t, "the account to be recorded", soon, func() error {
		answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/service-account/used/", clientv3.WithPrefix())
		if err == nil && (len(answer.Kvs) != 1 || !strings.Contains(string(answer.Kvs[0].Value), keeper)) {
			err = fmt.Errorf("got %v", answer.Kvs)
		}
		return err
	})
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	stopped := time.Now().Truncate(time.Second)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: args})
	kthwtest.WaitFor(t, "the accounts of before", soon, func() error {
		code, out := verb(t, c, tokenRotation("status")...)
		_, since, _ := strings.Cut(out, "it was restarted, and has watched without a break since ")
		since, _, _ = strings.Cut(since, "\n")
		if at, err := time.Parse(time.RFC3339, since); code != 0 || err != nil || at.Before(stopped) || !strings.Contains(out, keeper+" from") {
			return fmt.Errorf("want a time after %v, got exit code %d: %s", stopped, code, out)
		}
		return nil
	})
	refuses(t, c, tokenRotation("drop"), "is still in use", keeper)
	return c
}

// startsAgain restarts a controller after a rotation. It must accept a token from before, and find
// nothing wrong with its files.
func startsAgain(t *testing.T, c *kthwtest.Controller, args []string, token string) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Args: args})
	if err := whoAmI(t.Context(), withToken(t, c, token)); err != nil {
		t.Errorf("a token of the new key after a restart: %v", err)
	}
	for _, kind := range []string{"service_account_rotation", "file_misfit", "file_changed", "certificate", "keys_replaced"} {
		if r := mustStatus(t, c); findingSays(r, kind, "") {
			t.Errorf("after a restart: got the findings %+v", r.Findings)
		}
	}
}

// noTokenKeyInEtcd wants no private key below /kthwd in etcd.
func noTokenKeyInEtcd(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	f := tokenFilesOf(t, c)
	var secret strings.Builder
	begun := false
	for line := range strings.Lines(string(f.Key)) { // the first line of each key; the last ones are public
		if begun {
			fmt.Fprintf(&secret, "secret: %s", line)
		}
		begun = strings.HasPrefix(line, "-----BEGIN")
	}
	if secret.Len() == 0 {
		t.Fatal("no key in the file")
	}
	noKeyInState(t, c.Etcd(t), secret.String())
}

// killWhen runs a verb, and kills the controller when the rotation at that key enters a stage.
func killWhen(t *testing.T, c *kthwtest.Controller, key, stage string, verb ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	watch := c.Etcd(t).Watch(ctx, key)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = exec.CommandContext(ctx, kthwtest.Binary(t), append(verb, "--config=", "--data-dir="+c.Dir)...).Run()
	}()
	for answer := range watch {
		for _, e := range answer.Events {
			var s struct{ Stage string }
			if json.Unmarshal(e.Kv.Value, &s) == nil && s.Stage == stage {
				c.Signal(t, syscall.SIGKILL)
				c.Wait(t, soon)
				cancel()
				<-done
				return
			}
		}
	}
	t.Fatalf("the rotation has not come to the stage %s", stage)
}

// A controller that is killed in any stage accepts every token when it is back, and goes on when it
// is told to; a rotation that is taken back leaves the files as they were.
func TestServiceAccountKilled(t *testing.T) {
	endToEnd(t, "TestServiceAccountRotate")
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	account(t, c.Client(t), "keeper")
	tokens := map[string]string{"the first": mustToken(t, c.Client(t), "keeper")}
	before := tokenFilesOf(t, c)
	next := filepath.Join(c.Dir, "service-account-key.pem.next")
	for _, tt := range []struct {
		stage, then string
		run         []string
		drops       string // whose tokens are refused afterwards
	}{
		{"publish", "abort", []string{"rotate", "--wait=1h"}, ""},
		{"publish", "resume", []string{"rotate", "--wait=5s"}, ""},
		{"drop", "resume", []string{"drop", "--force"}, "the first"},
		{"sign", "resume", []string{"rotate", "--wait=0s"}, ""},
	} {
		killWhen(t, c, tokenRotationKey, tt.stage, tokenRotation(tt.run...)...)
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
		// The lease of the process that died may last for some seconds.
		kthwtest.WaitFor(t, tt.then+" after a kill in "+tt.stage, soon, func() error {
			code, out := verb(t, c, tokenRotation(tt.then)...)
			if code != 0 && !(tt.stage == "drop" && strings.Contains(out, "no rotation of the service account key is under way")) { // it was faster than the kill
				return errors.New(out)
			}
			return nil
		})
		if tt.then == "abort" {
			if is := tokenFilesOf(t, c); string(is.Key) != string(before.Key) || string(is.Public) != string(before.Public) {
				t.Error("taken back, the files are others than before")
			}
			mustVerb(t, c, tokenRotation("status"), "none; the last one", "aborted")
		}
		kthwtest.WaitFor(t, "no key to be kept", soon, func() error {
			if _, err := os.Stat(next); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("got %v", err)
			}
			return nil
		})
		tokens[tt.stage+" "+tt.then] = mustToken(t, c.Client(t), "keeper")
		if tt.drops != "" {
			if err := whoAmI(t.Context(), withToken(t, c, tokens[tt.drops])); !apierrors.IsUnauthorized(err) {
				t.Errorf("after the drop: a token of the old key got %v", err)
			}
			gone := kidOf(t, tokens[tt.drops])
			for name, token := range tokens {
				if kidOf(t, token) == gone {
					delete(tokens, name)
				}
			}
		}
		for name, token := range tokens {
			if err := whoAmI(t.Context(), withToken(t, c, token)); err != nil {
				t.Errorf("after a kill in %s and %s: a token of %s: %v", tt.stage, tt.then, name, err)
			}
		}
	}
	if f := tokenFilesOf(t, c); len(f.Signing()) != 2 || f.Signing()[0] != kidOf(t, mustToken(t, c.Client(t), "keeper")) {
		t.Errorf("at the end the files have %v", f.Signing())
	}
}

// Three controllers: without one of them a rotation does not begin, and the error names it. With all,
// no token is refused anywhere, and a controller with files of another time is not admitted.
func TestServiceAccountOfThree(t *testing.T) {
	endToEnd(t, "TestServiceAccountRotate and TestServiceAccountKilled rotate the key of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	account(t, direct(t, all[0]), "keeper")
	kept := mustToken(t, direct(t, all[0]), "keeper")
	old, before := kidOf(t, kept), tokenFilesOf(t, all[2])

	m.refusesWithoutC2(t, &all, tokenRotation("rotate", "--wait=0s")...)

	r := startRereaders(t, all[:]...)
	mustVerb(t, all[0], tokenRotation("rotate", "--wait=0s", "--without-backup"), "signs; tokens of "+old[:8]+" are accepted")
	now := kidOf(t, mustToken(t, direct(t, all[1]), "keeper"))
	for i, c := range all {
		wantPublished(t, direct(t, c), old, now)
		if got := kidOf(t, mustToken(t, direct(t, c), "keeper")); got != now {
			t.Errorf("c%d signs with %s, want %s", i, got, now)
		}
	}
	kthwtest.WaitFor(t, "another controller to name who keeps its token", soon, func() error {
		if err := whoAmI(t.Context(), withToken(t, all[2], kept)); err != nil {
			t.Fatalf("a token of the old key: %v", err)
		}
		if _, out := verb(t, all[1], tokenRotation("status")...); !strings.Contains(out, "system:serviceaccount:default:keeper from") {
			return errors.New(out)
		}
		return nil
	})
	m.refusesTokenFiles(t, &all, before, "is being rotated", r)
	mustVerb(t, all[1], tokenRotation("drop", "--force"), "done  ")
	for i, c := range all {
		wantPublished(t, direct(t, c), now)
		if f := tokenFilesOf(t, c); !slices.Equal(f.Signing(), []string{now}) {
			t.Errorf("c%d has the keys %v", i, f.Signing())
		}
	}
	again := startRereaders(t, all[:]...)
	kthwtest.WaitFor(t, "the old token to be refused everywhere", soon, func() error {
		for i, c := range all {
			if err := whoAmI(t.Context(), withToken(t, c, kept)); !apierrors.IsUnauthorized(err) {
				return fmt.Errorf("c%d: got %v", i, err)
			}
		}
		return nil
	})
	again.check(t, 1)
	m.refusesTokenFiles(t, &all, before, "not that of the other controllers", nil)
}

// refusesTokenFiles starts controller 2 with files of another time, which it must refuse. Where
// clients have run until then, it is started with its own again.
func (m *made) refusesTokenFiles(t *testing.T, all *[3]*kthwtest.Controller, files pki.TokenFiles, want string, r *rereaders) {
	t.Helper()
	if r != nil {
		r.check(t, 2)
	}
	c := all[2]
	is := tokenFilesOf(t, c)
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	put := func(f pki.TokenFiles) {
		edit(t, filepath.Join(c.Dir, "service-account.pem"), string(f.Public))
		edit(t, filepath.Join(c.Dir, "service-account-key.pem"), string(f.Key))
	}
	put(files)
	stranger := m.start(t, 2)
	if code := stranger.Wait(t, soon); code != 1 || !strings.Contains(stranger.Log.String(), want) {
		t.Errorf("with files of another time: got exit code %d, want %q in the log:\n%s", code, want, stranger.Log.Tail(20))
	}
	if r == nil {
		return // nobody needs it any more
	}
	put(is)
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
}
