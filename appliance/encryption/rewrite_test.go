package encryption

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/encryption/values"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/test/etcdtest"
)

// startEtcd runs a member without ports.
func startEtcd(t testing.TB, fsync bool) *clientv3.Client {
	t.Helper()
	return etcdtest.Client(t, etcdtest.Start(t, fsync))
}

// opened is a reader of a file.
func opened(t testing.TB, data []byte) values.Reader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c, err := keyfile.Load(ctx, data, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := gate.New(gate.Config{Prefix: "/registry"}).Reader(data, c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// put stores what an API server with that file would store.
func put(t testing.TB, client *clientv3.Client, r values.Reader, gr, key, content string) {
	t.Helper()
	data := []byte(content)
	if tr := r.Keys[schema.ParseGroupResource(gr)]; tr != nil {
		var err error
		if data, err = tr.TransformToStorage(context.Background(), data, value.DefaultContext(key)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Put(context.Background(), key, string(data)); err != nil {
		t.Fatal(err)
	}
}

// forms makes the files of a rotation of written.
func forms(t testing.TB) (p keyfile.Provider, read, write, alone []byte) {
	t.Helper()
	p = keyfile.Provider{Kind: "secretbox", Name: "key2"}
	key, err := keyfile.NewKey(p)
	if err != nil {
		t.Fatal(err)
	}
	var all [3][]byte
	for i, f := range []keyfile.Form{keyfile.FormRead, keyfile.FormWrite, keyfile.FormNew} {
		if all[i], err = keyfile.In([]byte(written), f, p, key); err != nil {
			t.Fatal(err)
		}
	}
	return p, all[0], all[1], all[2]
}

// Every encrypted value gets the new key, custom resources and plain ones of the named
// resources, too; what is plain on purpose, and what changes meanwhile, is left alone. The
// way back does the reverse.
func TestRewrite(t *testing.T) {
	client := startEtcd(t, false)
	p, read, write, alone := forms(t)
	old := opened(t, []byte(written))
	for i := range 150 {
		put(t, client, old, "secrets", fmt.Sprintf("/registry/secrets/shop/s%d", i), "content "+strings.Repeat("x", i*100))
	}
	put(t, client, old, "widgets.example.com", "/registry/example.com/widgets/shop/w", "content")
	put(t, client, values.Reader{}, "", "/registry/secrets/shop/plain", "content")
	put(t, client, values.Reader{}, "", "/registry/secrets.example.com/widgets/x", "content") // another group
	put(t, client, values.Reader{}, "", "/registry/configmaps/shop/c", "content")
	lease, err := client.Grant(t.Context(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	leased := "/registry/secrets/shop/leased"
	put(t, client, old, "secrets", leased, "content")
	answer, err := client.Get(t.Context(), leased)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(t.Context(), leased, string(answer.Kvs[0].Value), clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}

	writing := opened(t, write)
	s := State{New: p}
	look := func(r values.Reader) values.Stored {
		t.Helper()
		stored, bad, lost, err := r.Look(t.Context(), client, true)
		if err != nil || lost > 0 {
			t.Fatalf("got %v, %d lost, %v", bad, lost, err)
		}
		return stored
	}
	if got := look(writing); got.Keys["secretbox key1"] != 152 || got.Plain != 1 || clean(s, got) {
		t.Fatalf("before: got %v", got)
	}
	done := 0
	w := &values.Rewriter{Reader: writing, Client: client, Done: func(n int) { done += n }, Due: values.DueForward(writing, p)}
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := look(opened(t, alone)); got.Keys["secretbox key2"] != 153 || got.Plain != 0 || !clean(s, got) || done != 153 {
		t.Errorf("after: got %v, %d done", got, done)
	}
	answer, err = client.Get(t.Context(), leased)
	if err != nil || answer.Kvs[0].Lease != int64(lease.ID) {
		t.Errorf("a value with a lease: got %v, %v", answer, err)
	}
	for _, key := range []string{"/registry/secrets.example.com/widgets/x", "/registry/configmaps/shop/c"} {
		if answer, err := client.Get(t.Context(), key); err != nil || string(answer.Kvs[0].Value) != "content" {
			t.Errorf("%s has changed", key)
		}
	}
	before := answer.Header.Revision
	if err := w.Run(t.Context()); err != nil || done != 153 {
		t.Errorf("again: got %v, %d done", err, done)
	}
	if answer, _ := client.Get(t.Context(), "x"); answer.Header.Revision != before {
		t.Error("a second run has written")
	}

	reading := opened(t, read)
	back := &values.Rewriter{Reader: reading, Client: client, Done: func(int) {}, Due: values.DueBack(p)}
	if err := back.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := look(old); got.Keys["secretbox key1"] != 153 || !clean(State{New: p, Back: true}, got) {
		t.Errorf("back: got %v", got)
	}
}

// A value that changes between the read and the write stays as its writer wants it, and its
// neighbours are written.
func TestRewriteConflict(t *testing.T) {
	client := startEtcd(t, false)
	p, _, write, _ := forms(t)
	old, writing := opened(t, []byte(written)), opened(t, write)
	for _, name := range []string{"a", "b", "c"} {
		put(t, client, old, "secrets", "/registry/secrets/shop/"+name, "content")
	}
	w := &values.Rewriter{Reader: writing, Client: client, Done: func(int) {}, Due: values.DueForward(writing, p)}
	meanwhile := w.Due
	w.Due = func(key string, data []byte) bool {
		if strings.HasSuffix(key, "/c") { // b has been read, and not written yet
			put(t, client, writing, "secrets", "/registry/secrets/shop/b", "newer")
		}
		return meanwhile(key, data)
	}
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "content", "b": "newer", "c": "content"} {
		key := "/registry/secrets/shop/" + name
		answer, err := client.Get(t.Context(), key)
		if err != nil || !bytes.HasPrefix(answer.Kvs[0].Value, []byte(p.Prefix())) {
			t.Fatalf("%s: got %v, %v", name, answer, err)
		}
		if got, _, err := writing.Open(t.Context(), key, answer.Kvs[0].Value); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
}

// A controller that may act no more rewrites nothing, however late it notices: others may have
// forgotten its key.
func TestRewriteHeld(t *testing.T) {
	client := startEtcd(t, false)
	p, _, write, _ := forms(t)
	put(t, client, opened(t, []byte(written)), "secrets", "/registry/secrets/shop/s", "content")
	h, err := kind.Take(t.Context(), client, "c0")
	if err != nil {
		t.Fatal(err)
	}
	done, writing := 0, opened(t, write)
	w := &values.Rewriter{Reader: writing, Client: client, Done: func(n int) { done += n }, Due: values.DueForward(writing, p), Held: []clientv3.Cmp{h.Valid()}}
	h.Release()
	if h, err = kind.Take(t.Context(), client, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); err != nil || done != 0 {
		t.Errorf("got %v, %d done", err, done)
	}
	w.Held = []clientv3.Cmp{h.Valid()}
	if err := w.Run(t.Context()); err != nil || done != 1 {
		t.Errorf("the one that may act: got %v, %d done", err, done)
	}
}

// An election of etcd is no reason to stop; a value that cannot be opened, and a controller that
// may act no more, are.
func TestRepeat(t *testing.T) {
	client := startEtcd(t, false)
	p, _, write, _ := forms(t)
	put(t, client, opened(t, []byte(written)), "secrets", "/registry/secrets/shop/s", "content")
	writing := opened(t, write)
	r := New(Config{Gate: gate.New(gate.Config{}), Log: slog.New(slog.DiscardHandler)})
	ended, end := context.WithCancel(t.Context())
	end()
	w := &values.Rewriter{Reader: writing, Client: client, Done: func(int) {}, Due: values.DueForward(writing, p)}
	runs := 0
	if err := r.repeat(t.Context(), func() (bool, error) {
		if runs++; runs == 1 {
			err := w.Run(ended)
			if err == nil {
				t.Error("a run without etcd: no error")
			}
			return false, err
		}
		return true, w.Run(t.Context())
	}); err != nil || runs != 2 {
		t.Errorf("without an answer: got %v after %d runs", err, runs)
	}
	if s, _, _, err := writing.Look(t.Context(), client, true); err != nil || !clean(State{New: p}, s) {
		t.Errorf("got %v, %v", s, err)
	}
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want int
	}{{t.Context(), errors.New("cannot be opened"), 1}, {ended, &values.NoAnswer{Request: "read etcd", Err: context.Canceled}, 1}} {
		runs = 0
		if err := r.repeat(tt.ctx, func() (bool, error) { runs++; return false, tt.err }); !errors.Is(err, tt.err) || runs != tt.want {
			t.Errorf("got %v after %d runs", err, runs)
		}
	}
}

// What a file cannot open is found: another key of the same name, a resource that it does not
// name, a value without a key where identity is missing.
func TestUnreadable(t *testing.T) {
	client := startEtcd(t, false)
	old := opened(t, []byte(written))
	put(t, client, old, "secrets", "/registry/secrets/shop/s", "content")
	put(t, client, old, "widgets.example.com", "/registry/example.com/widgets/shop/w", "content")
	put(t, client, values.Reader{}, "", "/registry/secrets/shop/plain", "content")
	for name, tt := range map[string]struct {
		file string
		want []string
	}{
		"the same":                     {written, nil},
		"another key of the same name": {strings.ReplaceAll(written, secret1, secret2), []string{"/registry/example.com/widgets/shop/w", "/registry/secrets/shop/s"}},
		"a resource less":              {strings.Replace(written, "      - widgets.example.com\n", "", 1), []string{"/registry/example.com/widgets/shop/w"}},
		"without identity":             {strings.Replace(written, "      - identity: {}\n", "", 1), []string{"/registry/secrets/shop/plain"}},
	} {
		_, bad, lost, err := opened(t, []byte(tt.file)).Look(t.Context(), client, true)
		var got []string
		for _, p := range bad {
			got = append(got, p.Key)
		}
		if err != nil || !slices.Equal(got, tt.want) || lost != len(tt.want) {
			t.Errorf("%s: got %v, %d, %v, want %v", name, got, lost, err, tt.want)
		}
	}
}

// layout is a data directory with the key that seals a state.
func layout(t *testing.T) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Key(pki.NameServiceAccount), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// A state that something else than a controller has written is not trusted, and only the
// holder of the right to act writes it.
func TestState(t *testing.T) {
	client := startEtcd(t, false)
	l := layout(t)
	if s, err := readState(t.Context(), l, client); err != nil || s.running() {
		t.Fatalf("before: got %+v, %v", s, err)
	}
	h, err := kind.Take(t.Context(), client, "c0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kind.Take(t.Context(), client, "c1"); err == nil || !strings.Contains(err.Error(), "c0") {
		t.Errorf("a second holder: got %v", err)
	}
	s := State{ID: "a", Stage: StageWrite, Files: []string{"x"}}
	if err := s.save(t.Context(), l, client, h); err != nil {
		t.Fatal(err)
	}
	if got, err := readState(t.Context(), l, client); err != nil || got.Stage != StageWrite || !got.running() {
		t.Errorf("got %+v, %v", got, err)
	}
	answer, err := client.Get(t.Context(), kind.StateKey())
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(answer.Kvs[0].Value), `"write"`, `"drop"`, 1)
	if _, err := client.Put(t.Context(), kind.StateKey(), forged); err != nil {
		t.Fatal(err)
	}
	if _, err := readState(t.Context(), l, client); !errors.Is(err, errNoSeal) {
		t.Errorf("a forged state: got %v", err)
	}
	if err := s.save(t.Context(), l, client, h); !errors.Is(err, stages.ErrLost) {
		t.Errorf("a state that has changed: got %v", err)
	}
	h.Release()
	s.revision++ // that of the forged one
	if err := s.save(t.Context(), l, client, h); !errors.Is(err, stages.ErrLost) {
		t.Errorf("without the right to act: got %v", err)
	}
}

// BenchmarkRewrite measures the values of 1 KiB that are written anew each second, on the
// disk of the temporary directory and with its fsync.
func BenchmarkRewrite(b *testing.B) {
	client := startEtcd(b, true)
	_, _, write, _ := forms(b)
	old, writing := opened(b, []byte(written)), opened(b, write)
	const n = 2_000
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("/registry/secrets/shop/s%d", i)
	}
	for b.Loop() {
		b.StopTimer()
		for batch := range slices.Chunk(names, 100) {
			var puts []clientv3.Op
			for _, key := range batch {
				data, err := old.Keys[schema.GroupResource{Resource: "secrets"}].TransformToStorage(b.Context(), bytes.Repeat([]byte("x"), 1024), value.DefaultContext(key))
				if err != nil {
					b.Fatal(err)
				}
				puts = append(puts, clientv3.OpPut(key, string(data)))
			}
			if _, err := client.Txn(b.Context()).Then(puts...).Commit(); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		p := keyfile.Provider{Kind: "secretbox", Name: "key2"}
		w := &values.Rewriter{Reader: writing, Client: client, Done: func(int) {}, Due: values.DueForward(writing, p)}
		if err := w.Run(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "values/s")
	_ = values.Walk(b.Context(), client, "/registry/", func(kv *mvccpb.KeyValue) error {
		if bytes.Contains(kv.Value[:32], []byte("key1")) {
			b.Fatalf("%s has the old key", kv.Key)
		}
		return nil
	})
}

// A value without a key that a wildcard names is counted, opened and written anew as the API server
// would read it: an exact name goes before a group's wildcard, and that before the one for all.
func TestPlainUnderWildcards(t *testing.T) {
	const header = "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n"
	entry := func(providers string, resources ...string) string {
		return "  - resources: ['" + strings.Join(resources, "', '") + "']\n    providers:\n" + providers
	}
	const key, plain = "      - secretbox: {keys: [{name: key1, secret: " + secret1 + "}]}\n", "      - identity: {}\n"
	packed, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Raw: []byte("x")}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	client := startEtcd(t, false)
	for name, content := range map[string]string{
		"secrets/shop/s":                  "k8s\x00" + string(packed),
		"configmaps/shop/c":               `{"kind":"ConfigMap","apiVersion":"v1"}`,
		"deployments/shop/d":              `{"kind":"Deployment","apiVersion":"apps/v1"}`,
		"services/specs/shop/v":           `{"kind":"Service","apiVersion":"v1"}`,
		"example.com/widgets/shop/w":      `{"kind":"Widget","apiVersion":"example.com/v1"}`,
		"apiregistration.k8s.io/x/v1.":    `{"kind":"APIService","apiVersion":"apiregistration.k8s.io/v1"}`,
		"something/that/nobody/has/heard": "of",
		// The API server's own records, which no configuration reaches.
		"ranges/servicenodeports":    `{"kind":"RangeAllocation","apiVersion":"v1"}`,
		"ranges/serviceips":          `{"kind":"RangeAllocation","apiVersion":"v1"}`,
		"masterleases/10.0.0.1":      `{"kind":"Endpoints","apiVersion":"v1"}`,
		"peerserverleases/apiserver": `{"kind":"Endpoints","apiVersion":"v1"}`,
	} {
		put(t, client, values.Reader{}, "", "/registry/"+name, content)
	}
	all := []string{"apiregistration.k8s.io/x/v1.", "configmaps/shop/c", "deployments/shop/d", "example.com/widgets/shop/w", "secrets/shop/s", "services/specs/shop/v", "something/that/nobody/has/heard"}
	for name, tt := range map[string]struct {
		file string
		want []string
	}{
		"all":                        {entry(key+plain, "*.*"), all},
		"the core group":             {entry(key+plain, "*."), []string{"configmaps/shop/c", "secrets/shop/s", "services/specs/shop/v"}},
		"a group":                    {entry(key+plain, "*.apps"), []string{"deployments/shop/d"}},
		"a group of one's own":       {entry(key+plain, "*.example.com"), []string{"example.com/widgets/shop/w"}},
		"a name":                     {entry(key+plain, "services"), []string{"services/specs/shop/v"}},
		"all but one":                {entry(plain, "configmaps") + entry(key+plain, "*.*"), slices.DeleteFunc(slices.Clone(all), func(s string) bool { return strings.HasPrefix(s, "configmaps") })},
		"all but a group":            {entry(plain, "*.apps") + entry(key+plain, "*.*"), slices.DeleteFunc(slices.Clone(all), func(s string) bool { return strings.HasPrefix(s, "deployments") })},
		"one of a group that is not": {entry(key+plain, "secrets") + entry(plain, "*."), []string{"secrets/shop/s"}},
	} {
		r := opened(t, []byte(header+tt.file))
		s, _, lost, err := r.Look(t.Context(), client, true)
		if err != nil || lost > 0 || s.Plain != len(tt.want) {
			t.Errorf("%s: got %v, %d lost, %v, want %d", name, s, lost, err, len(tt.want))
		}
		// Without identity these, and only these, would be unreadable.
		_, _, lost, err = opened(t, []byte(strings.ReplaceAll(header+tt.file, key+plain, key))).Look(t.Context(), client, true)
		if err != nil || lost != len(tt.want) {
			t.Errorf("%s, without identity: got %d lost, %v, want %d", name, lost, err, len(tt.want))
		}
		due, want := values.DueForward(r, keyfile.Provider{Kind: "secretbox", Name: "key1"}), slices.Clone(tt.want)
		if err := values.Walk(t.Context(), client, "/registry/", func(kv *mvccpb.KeyValue) error {
			if at := slices.Index(want, strings.TrimPrefix(string(kv.Key), "/registry/")); due(string(kv.Key), kv.Value) != (at >= 0) {
				t.Errorf("%s: %s is due: %v", name, kv.Key, at < 0)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	r := opened(t, []byte(header+entry(key+plain, "*.*")))
	p := keyfile.Provider{Kind: "secretbox", Name: "key1"}
	w := &values.Rewriter{Reader: r, Client: client, Done: func(int) {}, Due: values.DueForward(r, p)}
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, _, lost, err := r.Look(t.Context(), client, true); err != nil || lost > 0 || s.Keys["secretbox key1"] != len(all) || !clean(State{New: p}, s) {
		t.Errorf("written anew: got %v, %d lost, %v", s, lost, err)
	}
}
