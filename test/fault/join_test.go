package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/member"
	"kthwd/test/kthwtest"
)

// growing is a cluster that begins with one controller, c0, on addresses of its own.
type growing struct {
	net   int // 127.0.net.x
	dir   string
	ports map[int]kthwtest.Ports
	c     map[int]*kthwtest.Controller
}

// begin starts c0 with what more args say.
func begin(t *testing.T, net int, args ...string) *growing {
	t.Helper()
	g := &growing{net: net, dir: t.TempDir(), ports: map[int]kthwtest.Ports{}, c: map[int]*kthwtest.Controller{}}
	g.ports[0] = kthwtest.FreePorts(t, g.address(0))
	p := g.ports[0]
	g.c[0] = kthwtest.Start(t, kthwtest.Options{Dir: g.data(0), Address: g.address(0), Ports: &p, Args: args})
	return g
}

func (g *growing) address(i int) string { return fmt.Sprintf("127.0.%d.%d", g.net, i+1) }
func (g *growing) data(i int) string    { return filepath.Join(g.dir, fmt.Sprintf("c%d", i)) }

var aToken = regexp.MustCompile(`kthwd join -\n\n.*\n\n  (kthwd1\.\S+)`)

// token is what kthwd member add prints for controller i.
func (g *growing) token(t *testing.T, i int, args ...string) string {
	t.Helper()
	var code int
	var out string
	kthwtest.WaitFor(t, "each member to be heard by the leader", soon, func() error {
		code, out = verb(t, g.c[0], append([]string{"member", "add", fmt.Sprintf("c%d", i), g.address(i)}, args...)...)
		if strings.Contains(out, "must be up to add another one") { // a leader that was elected just now
			return errors.New(out)
		}
		return nil
	})
	found := aToken.FindStringSubmatch(out)
	if code != 0 || found == nil {
		t.Fatalf("kthwd member add c%d: got exit code %d:\n%s", i, code, out)
	}
	return found[1]
}

// join runs kthwd join as controller i.
func (g *growing) join(t *testing.T, i int, token string, args ...string) (code int, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), g.joinArgs(t, i, token, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("kthwd join: %v", err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// joinArgs has what several on one machine must have apart.
func (g *growing) joinArgs(t *testing.T, i int, token string, args ...string) []string {
	t.Helper()
	if _, there := g.ports[i]; !there {
		g.ports[i] = kthwtest.FreePorts(t, g.address(i))
	}
	p := g.ports[i]
	return append([]string{
		"join", token, "--config=", "--data-dir=" + g.data(i), fmt.Sprintf("--etcd-client-port=%d", p.EtcdClient),
		fmt.Sprintf("--controller-manager-port=%d", p.ControllerManager), fmt.Sprintf("--scheduler-port=%d", p.Scheduler),
		fmt.Sprintf("--health-address=%s:%d", g.address(i), p.Health), fmt.Sprintf("--metrics-address=%s:%d", g.address(i), p.Metrics),
	}, args...)
}

// start runs controller i on the file that kthwd join has written.
func (g *growing) start(t *testing.T, i int) *kthwtest.Controller {
	t.Helper()
	p := g.ports[i]
	p.Secure, p.EtcdPeer = g.ports[0].Secure, g.ports[0].EtcdPeer
	g.c[i] = kthwtest.Start(t, kthwtest.Options{
		Dir: g.data(i), Address: g.address(i), Ports: &p, File: filepath.Join(g.data(i), "kthwd.yaml"), NoWait: true,
	})
	return g.c[i]
}

// grow adds controller i, in the three steps of an operator.
func (g *growing) grow(t *testing.T, i int, args ...string) {
	t.Helper()
	token := g.token(t, i)
	if code, out := g.join(t, i, token, args...); code != 0 {
		t.Fatalf("kthwd join as c%d: got exit code %d:\n%s", i, code, out)
	} else if strings.Contains(out, token) {
		t.Errorf("kthwd join prints the token:\n%s", out)
	}
	g.start(t, i).WaitReady(t)
}

// writer writes config maps, fifty in a second at most, until stop.
type writer struct {
	cancel  context.CancelFunc
	done    sync.WaitGroup
	acked   []string
	failed  []error
	longest time.Duration // between two acknowledgements
}

func startWriter(t *testing.T, client kubernetes.Interface, prefix string) *writer {
	ctx, cancel := context.WithCancel(t.Context())
	w := &writer{cancel: cancel}
	w.done.Go(func() {
		last := time.Now()
		pace := time.NewTicker(20 * time.Millisecond) // leave the machine to what is tested
		defer pace.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			select {
			case <-pace.C:
			case <-ctx.Done():
				return
			}
			name := fmt.Sprintf("%s-%d", prefix, i)
			_, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap(name, nil), metav1.CreateOptions{})
			if err != nil {
				w.failed = append(w.failed, err)
				continue
			}
			w.acked = append(w.acked, name)
			w.longest, last = max(w.longest, time.Since(last)), time.Now()
		}
	})
	return w
}

// stop ends the writer, and holds that each of the controllers has all that was
// acknowledged, and nothing that was never sent.
func (w *writer) stop(t *testing.T, all map[int]*kthwtest.Controller) {
	t.Helper()
	w.cancel()
	w.done.Wait()
	failed := max(len(w.failed)-1, 0) // the last one was cut off
	t.Logf("%d writes acknowledged, %d failed, longest gap %v", len(w.acked), failed, w.longest.Round(time.Millisecond))
	if failed > 0 {
		t.Logf("the first that failed: %v", w.failed[0])
	}
	if len(w.acked) == 0 {
		t.Errorf("no write was acknowledged")
	}
	for i, c := range all {
		list, err := ownClient(t, c).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Errorf("c%d: %v", i, err)
			continue
		}
		there := map[string]bool{}
		for _, m := range list.Items {
			there[m.Name] = true
		}
		for _, name := range w.acked {
			if !there[name] {
				t.Errorf("c%d: the acknowledged write %s is lost", i, name)
			}
		}
	}
}

// One controller becomes three and then five, under writes, and each of them works.
func TestGrow(t *testing.T) {
	kthwtest.Turn(t, 5)
	g := begin(t, 73)
	w := startWriter(t, ownClient(t, g.c[0]), "to-three")
	g.grow(t, 1)
	lists(t, g.c[0], "c0 voter up", "c1 voter up")
	g.grow(t, 2)
	lists(t, g.c[0], "c0 voter up", "c1 voter up", "c2 voter up")
	kthwtest.WaitFor(t, "the join port to close", soon, func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", g.address(0), g.ports[0].Join), soon)
		if err == nil {
			conn.Close()
			return fmt.Errorf("it is open")
		}
		return nil
	})
	w.stop(t, g.c)

	// The first one again: it began alone, and must not behave as one that is.
	stop(t, g.c[0], syscall.SIGTERM, 0)
	g.c[0] = again(t, g.c[0], kthwtest.Options{Args: []string{"--join-port=" + fmt.Sprint(g.ports[0].Join)}})
	w = startWriter(t, ownClient(t, g.c[0]), "to-five")
	g.grow(t, 3)
	g.grow(t, 4)
	lists(t, g.c[0], "c0 voter up", "c1 voter up", "c2 voter up", "c3 voter up", "c4 voter up")
	w.stop(t, g.c)
	g.knowsHosts(t)
	for i, c := range g.c {
		kthwtest.WaitFor(t, fmt.Sprintf("a write at c%d", i), soon, func() error { return write(t, ownClient(t, c), fmt.Sprintf("at-c%d", i)) })
	}
}

// knowsHosts wants each controller to publish the addresses of its certificate, for which no node gets
// one: those that have joined have a certificate with other names.
func (g *growing) knowsHosts(t *testing.T) {
	t.Helper()
	kthwtest.WaitFor(t, "the hosts of every controller", soon, func() error {
		answer, err := g.c[0].Etcd(t).Get(t.Context(), "/kthwd/config/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		published := map[string]string{}
		for _, kv := range answer.Kvs {
			var r struct {
				Name  string
				Hosts []string
			}
			if err := json.Unmarshal(kv.Value, &r); err != nil {
				return err
			}
			published[r.Name] = strings.Join(r.Hosts, " ") + " "
		}
		for i := range g.c {
			if has := published[fmt.Sprintf("c%d", i)]; !strings.Contains(has, g.address(i)+" ") {
				return fmt.Errorf("c%d: got %q, want %s in it", i, has, g.address(i))
			}
		}
		return nil
	})
}

// A controller that was removed comes back with a token, and its old data are kept.
func TestRejoin(t *testing.T) {
	kthwtest.Turn(t, 3)
	g := begin(t, 74)
	g.grow(t, 1)
	g.grow(t, 2)
	g.c[2].Signal(t, syscall.SIGKILL)
	g.c[2].Wait(t, soon)
	lists(t, g.c[0], "c0 voter up", "c1 voter up", "c2 voter down")
	refuses(t, g.c[0], []string{"member", "add", "c3", g.address(3)}, "error: 2 of 3 members are up, and 3 must be up to add another one", "hint: bring one of these back, or remove it: c2")
	refuses(t, g.c[0], []string{"member", "add", "c2", g.address(2)}, "error: c2 is a member already", "hint: to replace it, remove it first: kthwd member remove c2")
	mustRemove(t, g.c[0], "c2")
	comesBackInVain(t, g.start(t, 2))
	token := g.token(t, 2)
	code, out := g.join(t, 2, token)
	if code != 1 || !strings.Contains(out, "etcd/member is there already") || !strings.Contains(out, "--replace-data") {
		t.Errorf("kthwd join over old data: got exit code %d:\n%s", code, out)
	}
	if code, out := g.join(t, 2, token, "--replace-data"); code != 0 {
		t.Fatalf("kthwd join --replace-data: got exit code %d:\n%s", code, out)
	}
	for _, pattern := range []string{"etcd/.member.*/wal/*.wal", "kthwd.yaml.*"} {
		if kept, err := filepath.Glob(filepath.Join(g.data(2), pattern)); err != nil || len(kept) == 0 {
			t.Errorf("%s: got %v (%v), want what was there before", pattern, kept, err)
		}
	}
	g.start(t, 2).WaitReady(t)
	lists(t, g.c[0], "c0 voter up", "c1 voter up", "c2 voter up")
}

// What is wrong with a join is said, and the cluster is as before.
func TestJoinRefused(t *testing.T) {
	kthwtest.Turn(t, 3)
	g := begin(t, 75)
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"c0", g.address(1)}, 1, []string{"error: c0 is a member already, at " + g.address(0), "kthwd member remove c0"}},
		{[]string{"c1", g.address(0)}, 1, []string{"error: " + g.address(0) + " is the address of c0, which is a member already"}},
		{[]string{"c1", "10.0.1.35"}, 1, []string{"is loopback, which no other machine reaches"}},
		{[]string{"c1", "nowhere"}, 2, []string{`error: c1=nowhere: "nowhere" is not an IP address`}},
		{[]string{"-x", g.address(1)}, 2, []string{"error: "}},
		{[]string{"c/1", g.address(1)}, 2, []string{`"c/1" is not a name`}},
		{[]string{"c1"}, 2, []string{"hint: usage: kthwd member add NAME ADDRESS"}},
		{[]string{"c1", g.address(1), "--ttl=48h"}, 1, []string{"error: a token cannot be good for 48h0m0s: want 1s to 24h0m0s"}},
	} {
		code, out := verb(t, g.c[0], append([]string{"member", "add"}, tt.args...)...)
		for _, w := range tt.want {
			if code != tt.code || !strings.Contains(out, w) {
				t.Errorf("kthwd member add %q: got exit code %d, want %d and %q:\n%s", tt.args, code, tt.code, w, out)
			}
		}
	}
	lists(t, g.c[0], "c0 voter up")

	token := g.token(t, 1)
	refused := func(what, token string, i int, args []string, want ...string) {
		t.Helper()
		code, out := g.join(t, i, token, args...)
		for _, w := range append(want, "kthwd: error: ") {
			if code != 1 || !strings.Contains(out, w) {
				t.Errorf("%s: got exit code %d, want 1 and %q:\n%s", what, code, w, out)
			}
		}
		if strings.Contains(out, token) {
			t.Errorf("%s: prints the token:\n%s", what, out)
		}
		lists(t, g.c[0], "c0 voter up", "c1 joining its")
	}
	other, err := member.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	wrong, unknown, foreign := other, other, other
	wrong.Secret = bytes.Repeat([]byte{7}, len(other.Secret))
	unknown.ID = "0123456789ab"
	foreign.CA[0] ^= 1
	refused("a mistyped token", token[:len(token)-1]+"~", 1, nil, "the token is not a whole one")
	refused("a wrong token", wrong.String(), 1, nil, "the token is wrong", "kthwd member add NAME ADDRESS")
	refused("an unknown token", unknown.String(), 1, nil, "the token is not known here: it has expired, was used, or there is a newer one", "kthwd member add NAME ADDRESS")
	refused("a token of another CA", foreign.String(), 1, nil, "its certificate is not of the CA in the token")
	refused("a data directory in use", token, 0, nil, "is in use by another kthwd")

	busy, err := net.Listen("tcp", fmt.Sprintf("%s:%d", g.address(1), g.ports[0].EtcdPeer))
	if err != nil {
		t.Fatal(err)
	}
	refused("a peer port in use", token, 1, nil, "address already in use", "--etcd-peer-port")
	busy.Close()
	g.otherFiles(t, refused, token)
	g.otherVersion(t, other)
	g.elsewhere(t)
	g.newerToken(t, token)
}

// otherFiles: what is in the directory already must be the cluster's.
func (g *growing) otherFiles(t *testing.T, refused func(string, string, int, []string, ...string), token string) {
	t.Helper()
	if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--advertise-address="+g.address(1), "--data-dir="+g.data(1)).CombinedOutput(); err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	refused("files of another cluster", token, 1, nil, "ca.pem: is not that of the cluster", "encryption-config.yaml: is not that of the cluster", "move it away")
	if err := os.RemoveAll(g.data(1)); err != nil {
		t.Fatal(err)
	}
}

// otherVersion: a joiner with another minor version of Kubernetes or etcd.
func (g *growing) otherVersion(t *testing.T, token member.Token) {
	t.Helper()
	for _, v := range []member.Versions{{Kubernetes: "v1.36.9", Etcd: "3.7.0"}, {Kubernetes: "v1.37.0", Etcd: "3.6.0"}} {
		_, err := member.Client{Token: token, Joiner: member.NewJoiner(), Versions: v}.Files(t.Context(), true, true)
		if err == nil || !strings.Contains(err.Error(), "the minor versions must be the same") {
			t.Errorf("a joiner with %+v: got %v, want a refusal", v, err)
		}
	}
	lists(t, g.c[0], "c0 voter up", "c1 joining its")
}

// elsewhere: the token is for an address that this machine has not. All of
// 127.0.0.0/8 are its own, so the answer is asked for as a joiner does.
func (g *growing) elsewhere(t *testing.T) {
	t.Helper()
	token, err := member.ParseToken(g.token(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	c := member.Client{Token: token, Joiner: member.NewJoiner(), Versions: versions(t)}
	if _, err := c.Files(t.Context(), true, true); err != nil {
		t.Fatalf("the files for c2: %v", err)
	}
	// Nobody listens there: the membership must not change.
	if _, err := c.Admit(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "cannot reach the new controller's peer port") {
		t.Errorf("a joiner that is not there: got %v, want a refusal", err)
	}
	// Somebody else does: the health bridge of c0 speaks no TLS, its etcd no language of ours.
	lists(t, g.c[0], "c0 voter up", "c1 joining its", "c2 joining its")
	mustRemove(t, g.c[0], "c2")
	lists(t, g.c[0], "c0 voter up", "c1 joining its")
	if _, err := c.Files(t.Context(), true, true); err == nil || !strings.Contains(err.Error(), "the token is not known here") {
		t.Errorf("a token that was taken back: got %v, want a refusal", err)
	}
}

func versions(t *testing.T) (v member.Versions) {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), "version", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &v)
	}
	if err != nil || v.Kubernetes == "" || v.Etcd == "" {
		t.Fatalf("kthwd version: %v\n%s", err, out)
	}
	return v
}

// newerToken: a second token for the same controller is the only one, and it is
// good once.
func (g *growing) newerToken(t *testing.T, first string) {
	t.Helper()
	second := g.token(t, 1)
	if code, out := g.join(t, 1, first); code != 1 || !strings.Contains(out, "there is a newer one") {
		t.Errorf("the first of two tokens: got exit code %d:\n%s", code, out)
	}
	if code, out := g.join(t, 1, second); code != 0 {
		t.Fatalf("the second of two tokens: got exit code %d:\n%s", code, out)
	}
	lists(t, g.c[0], "c0 voter up", "c1 learner down")
	dir := t.TempDir()
	out, err := exec.Command(kthwtest.Binary(t), "join", second, "--config=", "--data-dir="+dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the token was used already: c1 is being added") {
		t.Errorf("a token that was used: got %v:\n%s", err, out)
	}
	g.start(t, 1).WaitReady(t)
	lists(t, g.c[0], "c0 voter up", "c1 voter up")
}

// Killed and interrupted again and again, at any moment, a join is gone on with by the
// same command, even after the cluster has spent the token; nothing is left over.
func TestJoinInterrupted(t *testing.T) {
	kthwtest.Turn(t, 3)
	g := begin(t, 77)
	ended := map[string]int{} // runs, by their end
	for round := 1; round <= 2; round++ {
		token := g.token(t, round)
		for n, longest, done := 1, 100, false; !done; n++ {
			if n > 1 {
				longest = max(longest+100, longest*5/4) // a busy machine needs long for one that nobody ends
			}
			if longest > int(2*soon/time.Millisecond) {
				t.Fatalf("c%d: no end after %v", round, ended)
			}
			cmd := exec.Command(kthwtest.Binary(t), g.joinArgs(t, round, token)...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			// The first two cannot be done, however late the signal is: c0 does not answer.
			held := n <= 2
			if held {
				g.c[0].Signal(t, syscall.SIGSTOP)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			signal := []os.Signal{syscall.SIGKILL, syscall.SIGINT}[n%2]
			ctx, over := context.WithTimeout(t.Context(), soon)
			go func() {
				within := longest // at any moment
				switch {
				case held:
					within = 100
				case n <= 6:
					g.awaitPeerPort(ctx, round)
					within = 20 // while the cluster looks whether it is there, and adds it
				}
				pause(ctx, time.Duration(rand.IntN(within))*time.Millisecond)
				for again := true; again && ctx.Err() == nil; again = held {
					cmd.Process.Signal(signal)
					// Until it listens, SIGINT is lost where the shell has it ignored.
					pause(ctx, 100*time.Millisecond)
				}
			}()
			err := cmd.Wait()
			over()
			if held {
				g.c[0].Signal(t, syscall.SIGCONT)
			}
			switch code := cmd.ProcessState.ExitCode(); {
			case err == nil:
				done = true
			case code == -1: // it was killed, or interrupted before it was told to look
				ended["killed"]++
			case code == 1 && strings.Contains(out.String(), "error: interrupted") && strings.Contains(out.String(), "hint: the same command continues"):
				ended["interrupted"]++
			default:
				t.Fatalf("kthwd join as c%d, after %v: got exit code %d:\n%s", round, ended, code, &out)
			}
		}
		ended["done"]++
		g.start(t, round).WaitReady(t)
		for _, left := range []string{"kthwd.join", ".*.new"} {
			kthwtest.WaitFor(t, left+" to be gone", soon, func() error {
				if found, err := filepath.Glob(filepath.Join(g.data(round), left)); err != nil || len(found) > 0 {
					return errors.Join(fmt.Errorf("found %v", found), err)
				}
				return nil
			})
		}
	}
	t.Logf("ends: %v", ended)
	if ended["killed"]+ended["interrupted"] < 4 {
		t.Errorf("got %v: want the first two of each that were cut short", ended)
	}
	lists(t, g.c[0], "c0 voter up", "c1 voter up", "c2 voter up")
}

// awaitPeerPort waits until a joiner listens on its peer port, or ctx ends.
func (g *growing) awaitPeerPort(ctx context.Context, i int) {
	address := net.JoinHostPort(g.address(i), strconv.Itoa(g.ports[0].EtcdPeer))
	for ctx.Err() == nil {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return
		}
	}
}

// A token that nobody uses, and a learner that nobody starts, are given up.
func TestJoinExpires(t *testing.T) {
	kthwtest.Turn(t, 2)
	g := begin(t, 76)
	token := g.token(t, 1, "--ttl=2s")
	lists(t, g.c[0], "c0 voter up")
	if code, out := g.join(t, 1, token); code != 1 || !strings.Contains(out, "kthwd: error: ") {
		t.Errorf("a token that has expired: got exit code %d:\n%s", code, out)
	}
	// The port has closed, or it is open for another one: then the token is unknown.
	g.token(t, 2)
	if code, out := g.join(t, 1, token); code != 1 || !strings.Contains(out, "has expired") {
		t.Errorf("a token that has expired: got exit code %d:\n%s", code, out)
	}

	for ttl := 5 * time.Second; ; ttl *= 2 { // a busy machine may need longer to join
		token = g.token(t, 1, "--ttl="+ttl.String())
		code, out := g.join(t, 1, token)
		if code == 0 {
			break
		}
		if ttl > time.Minute || !strings.Contains(out, "has expired") {
			t.Fatalf("kthwd join: got exit code %d:\n%s", code, out)
		}
		t.Logf("%v were not enough to join", ttl)
	}
	lists(t, g.c[0], "c0 voter up", "c2 joining its")
	logs(t, g.c[0], "a controller did not arrive in time and is no longer a member")
	late := g.start(t, 1)
	if code := late.Wait(t, soon); code != 1 || !strings.Contains(late.Log.String(), "is not among the members of the cluster") {
		t.Errorf("a learner that comes too late: got exit code %d:\n%s", code, late.Log.Tail(10))
	}
}

// A controller with another CA waits, as one whose peers are down; but it says who
// shows a certificate that it does not believe.
func TestOtherCA(t *testing.T) {
	kthwtest.Turn(t, 1)
	k := newTrio(t)
	c0 := k.start(t, 0)
	kthwtest.WaitFor(t, "the lone member to say what it waits for", soon, func() error { return waitsForQuorum(c0) })
	c1 := k.start(t, 1) // it makes a CA of its own
	for i, c := range []*kthwtest.Controller{c0, c1} {
		want := fmt.Sprintf("%s; c%d at 127.0.0.1 shows a certificate of another CA than %s", noQuorum, 1-i, filepath.Join(c.Dir, "etcd-ca.pem"))
		kthwtest.WaitFor(t, fmt.Sprintf("c%d to name the other one", i), soon, func() error {
			if r, err := c.Status(); err != nil || r.Quorum == nil || r.Quorum.Note != want || r.Reason != "etcd: "+want {
				return errors.Join(fmt.Errorf("got %+v, reason %q, want %q", r.Quorum, r.Reason, want), err)
			}
			return nil
		})
		logs(t, c, "a controller of another CA")
	}
}

// logs waits for a part of a line in the log.
func logs(t *testing.T, c *kthwtest.Controller, part string) {
	t.Helper()
	kthwtest.WaitFor(t, fmt.Sprintf("%q in the log", part), soon, func() error {
		if !strings.Contains(c.Log.String(), part) {
			return errors.New(c.Log.Tail(10))
		}
		return nil
	})
}
