package attack

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/member"
	"kthwd/test/kthwtest"
)

// grown is a cluster of one, c0, and the machine of a second controller, c1.
type grown struct {
	first   *cluster
	address string // c1's
	data    string
	ports   kthwtest.Ports
	token   string
}

func growing(t *testing.T) *grown {
	t.Helper()
	o := kthwtest.Options{}
	if !second.apart() {
		o.Address = "127.0.81.1" // because both controllers use the same API port
	}
	first := start(t, o)
	return &grown{first: first, address: second.address, data: filepath.Join(t.TempDir(), "c1"), ports: kthwtest.FreePorts(t, first.Address)}
}

var aToken = regexp.MustCompile(`kthwd1\.\S+`)

// newToken returns the token that kthwd member add prints for c1.
func (g *grown) newToken(t *testing.T, args ...string) member.Token {
	t.Helper()
	code, out := kthwd(t, append([]string{"member", "add", "c1", g.address, "--config=", "--data-dir=" + g.first.Dir}, args...)...)
	g.token = aToken.FindString(out)
	token, err := member.ParseToken(g.token)
	if code != 0 || err != nil {
		t.Fatalf("kthwd member add: exit code %d, %v:\n%s", code, err, out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "kthwd join") && strings.Contains(line, g.token) {
			t.Errorf("the command line that is printed shows the token to every user of the machine: %.30s…", strings.TrimSpace(line))
		}
	}
	return token
}

func (g *grown) join(t *testing.T) {
	t.Helper()
	g.newToken(t)
	g.joinWith(t)
}

// joinWith runs kthwd join with the token.
func (g *grown) joinWith(t *testing.T) {
	t.Helper()
	if code, out := kthwdOn(t, second, "join", g.token, "--config=", "--metrics-insecure", "--data-dir="+g.data, fmt.Sprintf("--etcd-client-port=%d", g.ports.EtcdClient),
		fmt.Sprintf("--controller-manager-port=%d", g.ports.ControllerManager), fmt.Sprintf("--scheduler-port=%d", g.ports.Scheduler),
		fmt.Sprintf("--health-address=%s:%d", g.address, g.ports.Health), fmt.Sprintf("--metrics-address=%s:%d", g.address, g.ports.Metrics)); code != 0 {
		t.Fatalf("kthwd join: exit code %d:\n%s", code, out)
	}
}

func (g *grown) start(t *testing.T) *kthwtest.Controller {
	t.Helper()
	p := g.ports
	p.Secure, p.EtcdPeer = g.first.Ports.Secure, g.first.Ports.EtcdPeer
	return kthwtest.Start(t, kthwtest.Options{Wrap: second.wrap(), Dir: g.data, Address: g.address, Ports: &p, File: filepath.Join(g.data, "kthwd.yaml"), NoWait: true})
}

// joiner returns the name of a kthwd join, such as a token is bound to.
func joiner(digit string) string { return strings.Repeat(digit, 32) }

// files requests the cluster's keys from the join port, as any holder of a token could.
func (g *grown) files(t *testing.T, from machine, id string, secret []byte, joiner string) (int, string, error) {
	t.Helper()
	return g.ask(from, joinRequest(t, id, secret, joiner))
}

// versions are those of the binary.
func versions(t *testing.T) (v member.Versions) {
	t.Helper()
	if code, out := kthwd(t, "version", "--output=json"); code != 0 || json.Unmarshal([]byte(out), &v) != nil {
		t.Fatalf("kthwd version: exit code %d\n%s", code, out)
	}
	return v
}

func joinRequest(t *testing.T, id string, secret []byte, joiner string) []byte {
	t.Helper()
	body, err := json.Marshal(member.Request{ID: id, Secret: secret, Joiner: joiner, NeedsCertificate: true, NeedsEtcdCertificate: true, KnowsEtcdCA: true,
		Versions: versions(t)})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (g *grown) ask(from machine, body []byte) (int, string, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Post(fmt.Sprintf("https://%s:%d%s", g.first.Address, g.first.Ports.Join, member.FilesPath), "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// aKey is in an answer that has a key among its files, whose contents are in base64.
const aKey = `-key.pem":`

// The contents of etcd alone are never enough to obtain a key.
func TestForgedJoinGivesNothing(t *testing.T) {
	t.Parallel()
	g := growing(t)
	etcd := g.first.Etcd(t)
	t.Run("no token was made", func(t *testing.T) {
		const id = "a1b2c3d4e5f6"
		secret := forge(t, etcd, id, nil)
		// The port is asked as long as the record is there, because it may open for a moment.
		kthwtest.WaitFor(t, "the end of the forged record", kthwtest.Soon, func() error {
			if code, body, err := g.files(t, attacker, id, secret, joiner("a")); err == nil {
				t.Fatalf("the join port answers the forged token with %d and %d bytes, ca-key.pem in them: %t", code, len(body), strings.Contains(body, `"ca-key.pem"`))
			}
			return there(t, etcd, id)
		})
		if !strings.Contains(g.first.Log.String(), "without a controller's seal") {
			t.Errorf("the log does not tell of it:\n%s", g.first.Log.Tail(5))
		}
	})
	t.Run("beside a token", func(t *testing.T) {
		token := g.newToken(t)
		// The seal of a genuine record, moved to one that gives away the CA's key.
		answer, err := etcd.Get(t.Context(), "/kthwd/joins/"+token.ID)
		if err != nil || len(answer.Kvs) != 1 {
			t.Fatalf("the record of the token: %v, %v", answer, err)
		}
		var record map[string]json.RawMessage // numbers stay as they are
		if err := json.Unmarshal(answer.Kvs[0].Value, &record); err != nil || record["seal"] == nil {
			t.Fatalf("the record of the token: %v, seal %s", err, record["seal"])
		}
		const id = "b1b2c3d4e5f6"
		secret := forge(t, etcd, id, record["seal"])
		if err := g.wantUnknown(t, "the forged token", attacker, id, secret); err != nil {
			t.Errorf("the join port is closed, although there is a token: %v", err)
		}
		kthwtest.WaitFor(t, "the end of the forged record", kthwtest.Soon, func() error { return there(t, etcd, id) })
		// The genuine record with the CA's key added.
		record["caKey"] = json.RawMessage("true")
		value, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Put(t.Context(), "/kthwd/joins/"+token.ID, string(value)); err != nil {
			t.Fatal(err)
		}
		// From the machine that it is for, so that nothing but the seal is wrong. The port may be
		// closed already, because no record is left.
		_ = g.wantUnknown(t, "the record that was changed", second, token.ID, token.Secret)
	})
}

// forge writes the record of a join for the attacker's machine, which gives away the key of the CA.
// Nothing but the seal tells it from one that a controller made.
func forge(t *testing.T, etcd *clientv3.Client, id string, seal json.RawMessage) (secret []byte) {
	t.Helper()
	lease, err := etcd.Grant(t.Context(), 900)
	if err != nil {
		t.Fatal(err)
	}
	secret = bytes.Repeat([]byte{7}, 16)
	hash := sha256.Sum256(append([]byte("kthwd join\x00"+id+"\x00"), secret...))
	record := map[string]any{"id": id, "name": "evil", "address": attacker.address, "secret": hash[:], "caKey": true, "ttlNanoseconds": 900 * time.Second,
		"lease": lease.ID, "made": time.Now().UTC().Truncate(time.Second), "seal": seal}
	value, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	// In one step: a record whose token is not valid is dropped as expired.
	if _, err := etcd.Txn(t.Context()).Then(clientv3.OpPut("/kthwd/joins/"+id, string(value)),
		clientv3.OpPut("/kthwd/joins/"+id+"/valid", "", clientv3.WithLease(lease.ID))).Commit(); err != nil {
		t.Fatal(err)
	}
	return secret
}

// there is an error while the record of a join is there.
func there(t *testing.T, etcd *clientv3.Client, id string) error {
	t.Helper()
	answer, err := etcd.Get(t.Context(), "/kthwd/joins/"+id)
	if err == nil && len(answer.Kvs) > 0 {
		err = fmt.Errorf("%s is there", answer.Kvs[0].Key)
	}
	return err
}

// wantUnknown wants a token to be refused because its record is not believed, and for no other
// reason. It returns an error if nothing answers.
func (g *grown) wantUnknown(t *testing.T, what string, from machine, id string, secret []byte) error {
	t.Helper()
	code, body, err := g.files(t, from, id, secret, joiner("a"))
	if err == nil && (code != http.StatusConflict || strings.Contains(body, aKey) || !strings.Contains(body, "is not known here")) {
		t.Errorf("%s: got %d %.200q; want it refused as unknown", what, code, body)
	}
	return err
}

// A token is valid only for its first user: a copy of it obtains nothing, and the log
// names the copier's address.
func TestTokenIsGoodOnce(t *testing.T) {
	t.Parallel()
	g := growing(t)
	token := g.newToken(t)
	// A kthwd that is older than etcd's own CA would start with a certificate that nobody accepts.
	if !reviewed {
		old := bytes.Replace(joinRequest(t, token.ID, token.Secret, joiner("c")), []byte(`"knowsEtcdCA":true,`), nil, 1)
		if code, body, err := g.ask(second, old); err != nil || code != http.StatusConflict || strings.Contains(body, aKey) || !strings.Contains(body, "older than etcd's own CA") {
			t.Errorf("an older kthwd: got %d %.200q, %v; want it refused", code, body, err)
		}
	}
	// Without a name of its own a joiner would leave the token as it is, for others.
	if code, body, err := g.files(t, second, token.ID, token.Secret, ""); err != nil || code != http.StatusConflict || strings.Contains(body, aKey) {
		t.Errorf("a joiner without a name: got %d %.200q, %v; want it refused", code, body, err)
	}
	// From another machine it is worth nothing, before its use and after.
	fromElsewhere := func() {
		t.Helper()
		if !attacker.apart() {
			return // all of loopback is one machine
		}
		if code, body, err := g.files(t, attacker, token.ID, token.Secret, joiner("a")); err != nil || code != http.StatusConflict || strings.Contains(body, aKey) ||
			!strings.Contains(body, "this request comes from "+attacker.address) {
			t.Errorf("from another machine: got %d %.200q, %v; want it refused", code, body, err)
		}
	}
	fromElsewhere()
	if code, body, err := g.files(t, second, token.ID, token.Secret, joiner("a")); err != nil || code != http.StatusOK || !strings.Contains(body, "service-account-key.pem") {
		t.Fatalf("the first use: got %d %.200q, %v", code, body, err)
	}
	for range 2 {
		code, body, err := g.files(t, second, token.ID, token.Secret, joiner("b"))
		if err != nil || code != http.StatusConflict || strings.Contains(body, "service-account-key.pem") || !strings.Contains(body, "used already") {
			t.Errorf("another use: got %d %.200q, %v; want it refused", code, body, err)
		}
	}
	fromElsewhere()
	if code, _, err := g.files(t, second, token.ID, token.Secret, joiner("a")); err != nil || code != http.StatusOK {
		t.Errorf("the first joiner once more, after a crash: got %d, %v", code, err)
	}
	log := g.first.Log.String()
	for want, from := range map[string]machine{"files given to a controller that joins": second, "join refused": second, "this request comes from": attacker} {
		line := lineWith(log, want)
		host, _, err := net.SplitHostPort(fieldOf(line, "from"))
		right := host == from.address
		if !from.apart() {
			right = net.ParseIP(host).IsLoopback()
			if from == attacker {
				continue // no request came from there
			}
		}
		if !strings.Contains(line, "WRN") && !strings.Contains(line, "WARN") || err != nil || !right {
			t.Errorf("want a warning %q with the peer's address, got %q", want, line)
		}
	}
}

// A client without a token can neither fill the log nor have etcd read at each request.
// The joiner on another address is not kept waiting.
func TestJoinPortHasLimits(t *testing.T) {
	t.Parallel()
	g := growing(t)
	token := g.newToken(t)
	wrong := joinRequest(t, token.ID, bytes.Repeat([]byte{9}, len(token.Secret)), joiner("a"))
	const requests, atOnce = 200, 20
	var mu sync.Mutex
	var wg sync.WaitGroup
	codes := map[int]int{}
	for range atOnce {
		wg.Go(func() {
			for range requests / atOnce {
				code, _, err := g.ask(attacker, wrong)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				codes[code]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if codes[http.StatusConflict] == 0 || codes[http.StatusTooManyRequests] < codes[http.StatusConflict] {
		t.Errorf("answers of %d requests with a wrong secret: %v, want most of them not looked at", requests, codes)
	}
	if lines := strings.Count(g.first.Log.String(), "join re"); lines > 2*codes[http.StatusConflict] {
		t.Errorf("%d lines in the log for %d requests, of which %d were looked at", lines, requests, codes[http.StatusConflict])
	}
	g.joinWith(t)
	if info, err := os.Stat(filepath.Join(g.data, "kthwd.yaml")); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("the configuration file of the new controller: %v, %v; want mode 0640", info, err)
	}
}

func lineWith(log, text string) string {
	for line := range strings.SplitSeq(log, "\n") {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func fieldOf(line, key string) string {
	_, rest, _ := strings.Cut(line, " "+key+"=")
	value, _, _ := strings.Cut(rest, " ")
	return strings.Trim(value, `"`)
}
