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
	// A separate address, because both controllers use the same API port.
	first := start(t, kthwtest.Options{Address: "127.0.81.1"})
	return &grown{first: first, address: "127.0.81.2", data: filepath.Join(t.TempDir(), "c1"), ports: kthwtest.FreePorts(t, "127.0.81.2")}
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
	if code, out := kthwd(t, "join", g.token, "--config=", "--data-dir="+g.data, fmt.Sprintf("--etcd-client-port=%d", g.ports.EtcdClient),
		fmt.Sprintf("--controller-manager-port=%d", g.ports.ControllerManager), fmt.Sprintf("--scheduler-port=%d", g.ports.Scheduler),
		fmt.Sprintf("--health-address=%s:%d", g.address, g.ports.Health), fmt.Sprintf("--metrics-address=%s:%d", g.address, g.ports.Metrics)); code != 0 {
		t.Fatalf("kthwd join: exit code %d:\n%s", code, out)
	}
}

func (g *grown) start(t *testing.T) *kthwtest.Controller {
	t.Helper()
	p := g.ports
	p.Secure, p.EtcdPeer = g.first.Ports.Secure, g.first.Ports.EtcdPeer
	return kthwtest.Start(t, kthwtest.Options{Dir: g.data, Address: g.address, Ports: &p, File: filepath.Join(g.data, "kthwd.yaml"), NoWait: true})
}

// files requests the cluster's keys from the join port, as any holder of a token could.
func (g *grown) files(t *testing.T, id string, secret []byte, joiner string) (int, string, error) {
	t.Helper()
	return g.ask(joinRequest(t, id, secret, joiner))
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

func (g *grown) ask(body []byte) (int, string, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Post(fmt.Sprintf("https://%s:%d%s", g.first.Address, g.first.Ports.Join, member.FilesPath), "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

const keyBlock = "PRIVATE KEY"

// The contents of etcd alone are never enough to obtain a key.
func TestForgedJoinGivesNothing(t *testing.T) {
	t.Parallel()
	g := growing(t)
	etcd := g.first.Etcd(t)
	forge := func(id string, caKey bool, more map[string]any) []byte {
		secret := bytes.Repeat([]byte{7}, 16)
		hash := sha256.Sum256(append([]byte("kthwd join\x00"+id+"\x00"), secret...))
		record := map[string]any{"id": id, "name": "evil", "address": g.address, "secret": hash[:], "caKey": caKey, "ttlNanoseconds": 9e11, "lease": 0}
		for k, v := range more {
			record[k] = v
		}
		value, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		// In one step: a record whose token is not valid is dropped as expired.
		if _, err := etcd.Txn(t.Context()).Then(clientv3.OpPut("/kthwd/joins/"+id, string(value)), clientv3.OpPut("/kthwd/joins/"+id+"/valid", "")).Commit(); err != nil {
			t.Fatal(err)
		}
		return secret
	}
	gone := func(id string) {
		t.Helper()
		kthwtest.WaitFor(t, "the end of the forged record", kthwtest.Soon, func() error {
			answer, err := etcd.Get(t.Context(), "/kthwd/joins/"+id)
			if err == nil && len(answer.Kvs) > 0 {
				err = fmt.Errorf("%s is there", answer.Kvs[0].Key)
			}
			return err
		})
	}
	t.Run("no token was made", func(t *testing.T) {
		secret := forge("a1b2c3d4e5f6", true, nil)
		gone("a1b2c3d4e5f6")
		if code, body, err := g.files(t, "a1b2c3d4e5f6", secret, "x"); err == nil {
			t.Errorf("the join port answers %d %.100q, want it closed", code, body)
		}
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
		var record map[string]any
		if err := json.Unmarshal(answer.Kvs[0].Value, &record); err != nil || record["seal"] == nil {
			t.Fatalf("the record of the token: %v, seal %v", err, record["seal"])
		}
		secret := forge("b1b2c3d4e5f6", true, map[string]any{"seal": record["seal"], "lease": record["lease"]})
		if code, body, err := g.files(t, "b1b2c3d4e5f6", secret, "x"); err != nil || code != http.StatusConflict || strings.Contains(body, keyBlock) {
			t.Errorf("the forged token: got %d %.100q, %v; want it refused", code, body, err)
		}
		gone("b1b2c3d4e5f6")
		// The genuine record with the CA's key added.
		record["caKey"] = true
		value, err := json.Marshal(record)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := etcd.Put(t.Context(), "/kthwd/joins/"+token.ID, string(value)); err != nil {
			t.Fatal(err)
		}
		if code, body, err := g.files(t, token.ID, token.Secret, "x"); err == nil && (code == http.StatusOK || strings.Contains(body, keyBlock)) {
			t.Errorf("the record that was changed: got %d %.100q; want it refused", code, body)
		}
	})
}

// A token is valid only for its first user: a copy of it obtains nothing, and the log
// names the copier's address.
func TestTokenIsGoodOnce(t *testing.T) {
	t.Parallel()
	g := growing(t)
	token := g.newToken(t)
	first := strings.Repeat("a", 32)
	// A kthwd that is older than etcd's own CA would start with a certificate that nobody accepts.
	old := bytes.Replace(joinRequest(t, token.ID, token.Secret, strings.Repeat("c", 32)), []byte(`"knowsEtcdCA":true,`), nil, 1)
	if code, body, err := g.ask(old); err != nil || code != http.StatusConflict || strings.Contains(body, keyBlock) || !strings.Contains(body, "older than etcd's own CA") {
		t.Errorf("an older kthwd: got %d %.200q, %v; want it refused", code, body, err)
	}
	// Without a name of its own a joiner would leave the token as it is, for others.
	if code, body, err := g.files(t, token.ID, token.Secret, ""); err != nil || code != http.StatusConflict || strings.Contains(body, keyBlock) {
		t.Errorf("a joiner without a name: got %d %.200q, %v; want it refused", code, body, err)
	}
	if code, body, err := g.files(t, token.ID, token.Secret, first); err != nil || code != http.StatusOK || !strings.Contains(body, "service-account-key.pem") {
		t.Fatalf("the first use: got %d %.200q, %v", code, body, err)
	}
	for range 2 {
		code, body, err := g.files(t, token.ID, token.Secret, strings.Repeat("b", 32))
		if err != nil || code != http.StatusConflict || strings.Contains(body, "service-account-key.pem") || !strings.Contains(body, "used already") {
			t.Errorf("another use: got %d %.200q, %v; want it refused", code, body, err)
		}
	}
	if code, _, err := g.files(t, token.ID, token.Secret, first); err != nil || code != http.StatusOK {
		t.Errorf("the first joiner once more, after a crash: got %d, %v", code, err)
	}
	log := g.first.Log.String()
	for _, want := range []string{"files given to a controller that joins", "join refused"} {
		line := lineWith(log, want)
		host, _, err := net.SplitHostPort(fieldOf(line, "from"))
		if !strings.Contains(line, "WRN") && !strings.Contains(line, "WARN") || err != nil || !net.ParseIP(host).IsLoopback() {
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
	wrong := joinRequest(t, token.ID, bytes.Repeat([]byte{9}, len(token.Secret)), "x")
	const requests, atOnce = 200, 20
	var mu sync.Mutex
	var wg sync.WaitGroup
	codes := map[int]int{}
	for range atOnce {
		wg.Go(func() {
			for range requests / atOnce {
				code, _, err := g.ask(wrong)
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
