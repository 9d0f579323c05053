package backup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"filippo.io/age"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

var noLog = slog.New(slog.DiscardHandler)

// TestMain is the child process of a verification when the arguments say so.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "check" {
		if err := verify.RunChecker(context.Background(), os.Args[2], os.Args[3], "v0.1.0", os.Stdin, os.Stdout, noLog); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "open" {
		if err := keep.RunOpener(context.Background(), os.Args[2], os.Stdout, noLog); err != nil {
			os.Exit(1)
		}
		return
	}
	if code, is := runChild(os.Args); is {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func checker(ctx context.Context, file, dir string) *exec.Cmd {
	return exec.CommandContext(ctx, "/proc/self/exe", "check", file, dir)
}

// controller is a data directory with real files, and an etcd that serves its socket.
type controller struct {
	config config.Controller
	server *embed.Etcd
}

// newController makes one with n keys and a secret that the encryption configuration opens.
func newController(t *testing.T, n int) *controller {
	t.Helper()
	c := &controller{config: config.Default().Controller}
	dir, err := os.MkdirTemp("", "kthwd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c.config.DataDir, c.config.Name, c.config.BindAddress, c.config.AdvertiseAddress = dir, "c0", "127.0.0.1", "127.0.0.1"
	must(t, c.config.Resolve())
	l := c.config.Layout()
	_, err = pki.Ensure(l, c.config.PKISpec())
	must(t, errors.Join(err, pki.RecordNames(l), os.Mkdir(l.Run(), 0o700)))
	c.start(t)
	c.serveCopies(t)
	client := v3client.New(c.server.Server)
	for i := range n {
		_, err := client.Put(t.Context(), fmt.Sprintf("/registry/configmaps/default/c%d", i), strings.Repeat("v", 100))
		must(t, err)
	}
	const key = "/registry/secrets/default/s"
	_, err = client.Put(t.Context(), key, encrypt(t, l, key))
	must(t, err)
	for _, key := range []string{"/registry/masterleases/10.0.0.1", "/kthwd/joins/1", "/kthwd/fingerprints"} {
		_, err := client.Put(t.Context(), key, "x")
		must(t, err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *controller) start(t *testing.T) {
	t.Helper()
	l := c.config.Layout()
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "c0", l.Etcd(), "fatal"
	cfg.ListenPeerUrls, cfg.UnsafeNoFsync = nil, true
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: l.EtcdSocket()}}
	cfg.InitialCluster = cfg.InitialClusterFromName("c0")
	cfg.TickMs, cfg.ElectionMs = 20, 200
	server, err := embed.StartEtcd(cfg)
	must(t, err)
	c.server = server
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	ids := etcdfiles.RecordOf(server.Server.Cluster().ID(), server.Server.MemberID())
	ids.Members = 1
	must(t, ids.Write(l))
}

// startLearner makes a cluster of a voter and a learner, and returns the controller of the learner.
func startLearner(t *testing.T) *controller {
	t.Helper()
	start := func(name, dir, cluster, state string, peer, client url.URL) *embed.Etcd {
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir, cfg.LogLevel = name, dir, "fatal"
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls, cfg.UnsafeNoFsync = []url.URL{peer}, []url.URL{peer}, true
		cfg.ListenClientUrls = []url.URL{client}
		cfg.InitialCluster, cfg.ClusterState = cluster, state
		cfg.TickMs, cfg.ElectionMs = 20, 200
		server, err := embed.StartEtcd(cfg)
		must(t, err)
		t.Cleanup(server.Close)
		return server
	}
	dir, err := os.MkdirTemp("", "kthwd") // short enough for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &controller{config: config.Default().Controller}
	c.config.DataDir, c.config.Name, c.config.BindAddress, c.config.AdvertiseAddress = dir, "c1", "127.0.0.1", "127.0.0.1"
	must(t, c.config.Resolve())
	l := c.config.Layout()
	must(t, os.MkdirAll(l.Run(), 0o700))
	var peers [2]url.URL
	for i := range peers {
		port, err := kthwtest.FreePort()
		must(t, err)
		peers[i] = url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	}
	cluster := "c0=" + peers[0].String()
	voter := start("c0", filepath.Join(dir, "voter"), cluster, embed.ClusterStateFlagNew, peers[0], url.URL{Scheme: "unix", Path: filepath.Join(dir, "c")})
	<-voter.Server.ReadyNotify()
	_, err = v3client.New(voter.Server).MemberAddAsLearner(t.Context(), []string{peers[1].String()})
	must(t, err)
	c.server = start("c1", l.Etcd(), cluster+",c1="+peers[1].String(), embed.ClusterStateFlagExisting, peers[1], url.URL{Scheme: "unix", Path: l.EtcdSocket()})
	<-c.server.Server.ReadyNotify()
	return c
}

// encrypt returns what the API server would store.
func encrypt(t *testing.T, l pki.Layout, key string) string {
	t.Helper()
	data, err := os.ReadFile(l.EncryptionConfig())
	must(t, err)
	copied := filepath.Join(t.TempDir(), "encryption-config.yaml")
	must(t, os.WriteFile(copied, data, 0o600))
	c, err := encryptionconfig.LoadEncryptionConfig(t.Context(), copied, false, "")
	must(t, err)
	for _, transformer := range c.Transformers {
		sealed, err := transformer.TransformToStorage(t.Context(), []byte("secret"), value.DefaultContext(key))
		must(t, err)
		return string(sealed)
	}
	t.Fatal("no key")
	return ""
}

// serveCopies gives the database to each client of a socket, as kthwd does: a line with size and
// store, then the bytes.
func (c *controller) serveCopies(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("unix", copySocket(c.config.Layout()))
	must(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { listener.Close(); all.Wait() })
	b := c.server.Server.Backend()
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				made, err := dbcopy.NewCopy(b)
				if err != nil {
					return
				}
				defer made.Close()
				if json.NewEncoder(conn).Encode(made) == nil {
					_ = made.Send(context.Background(), conn) // the client may have been killed
				}
			})
		}
	})
}

func copySocket(l pki.Layout) string { return filepath.Join(l.Run(), "copies.sock") }

// askForCopy is a client of serveCopies.
func askForCopy(ctx context.Context, l pki.Layout) (*Copy, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", copySocket(l))
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	r := bufio.NewReader(conn)
	line, err := r.ReadBytes('\n')
	var c dbcopy.Copy
	if err = errors.Join(err, json.Unmarshal(line, &c)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return NewCopy(struct {
		io.Reader
		io.Closer
	}{r, conn}, c.Size, c.Store), nil
}

func (c *controller) options(dir string) Options {
	return Options{
		Database: func(ctx context.Context) (*Copy, error) { return askForCopy(ctx, c.config.Layout()) },
		Layout:   c.config.Layout(), Dir: dir, PlainKeys: true, Kthwd: "v0.1.0", Name: "c0", Address: "127.0.0.1",
		Server: c.config.LocalServer(), Prefix: "/registry", Settings: []byte("name: c0\n"), Checker: checker,
	}
}

func (c *controller) create(t *testing.T, o Options) Created {
	t.Helper()
	made, err := Create(t.Context(), o)
	must(t, err)
	return made
}

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	return id
}

// names lists what is in a directory, hidden files included.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// older are options as with a running kthwd that gives no copy, or one without its store.
func older(o Options) map[string]Options {
	none, bare, whole := o, o, o.Database
	none.Database = func(context.Context) (*Copy, error) { return nil, errors.New("404 page not found") }
	bare.Database = func(ctx context.Context) (*Copy, error) {
		c, err := whole(ctx)
		if err == nil {
			c.Size, c.Store = 0, dbcopy.Store{}
		}
		return c, err
	}
	return map[string]Options{"no copy": none, "no store": bare}
}

// stagedDatabases are the databases that lie in the directory of an archive while that is made.
func stagedDatabases(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, workdir.Prefix+"*", archive.Database))
	must(t, err)
	return found
}

// A running kthwd that is older serves a backup, too, by a further copy on the disk.
func TestCreateWithAnOlderKthwd(t *testing.T) {
	c := newController(t, 10)
	for name, o := range older(c.options("")) {
		t.Run(name, func(t *testing.T) {
			o.Dir = t.TempDir()
			staged := 0
			o.Report = func(e step.Event) {
				if all := stagedDatabases(t, o.Dir); e.Step == step.Pack && e.Took == 0 {
					staged += len(all)
				} else if e.Step == step.Extract && len(all) > 0 {
					t.Errorf("left when the archive is verified: %v", all)
				}
			}
			made := c.create(t, o)
			if m := made.Verified.Manifest; m.Keys < 14 || staged == 0 {
				t.Errorf("got %+v, and the database was on the disk at %d events", m, staged)
			}
			if left := names(t, o.Dir); len(left) != 1 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A copy that breaks off, or whose bytes are not those that were sent, becomes no archive.
func TestCreateFromABrokenCopy(t *testing.T) {
	c, dir := newController(t, 10), t.TempDir()
	whole := c.options(dir).Database
	for name, tt := range map[string]struct {
		want   string
		change func(io.Reader) io.Reader
	}{
		"breaks off": {"copy the database: ", func(r io.Reader) io.Reader { return io.LimitReader(r, 10_000) }},
		"fails": {"copy the database: unexpected EOF", func(r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 10_000), iotest.ErrReader(io.ErrUnexpectedEOF))
		}},
		"another byte": {"do not have the sum that etcd sent", func(r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 10_000), strings.NewReader("x"), &skip{r, 1})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.options(dir)
			o.Database = func(ctx context.Context) (*Copy, error) {
				c, err := whole(ctx)
				if err == nil {
					c.Reader = tt.change(c.Reader)
				}
				return c, err
			}
			_, err := Create(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) || step.Of(err) != step.Pack {
				t.Errorf("got %v in the step %q, want %q", err, step.Of(err), tt.want)
			}
			if left := names(t, dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// skip leaves out the next n bytes.
type skip struct {
	io.Reader
	n int64
}

func (s *skip) Read(p []byte) (int, error) {
	if _, err := io.CopyN(io.Discard, s.Reader, s.n); err != nil {
		return 0, err
	}
	s.n = 0
	return s.Reader.Read(p)
}

func TestCreate(t *testing.T) {
	c, dir, id := newController(t, 100), t.TempDir(), newIdentity(t)
	o := c.options(dir)
	o.PlainKeys, o.Recipients = false, []age.Recipient{id.Recipient()}
	steps := map[string]bool{}
	o.Report = func(e step.Event) {
		steps[e.Step] = steps[e.Step] || e.Took > 0
		if all := stagedDatabases(t, dir); len(all) > 0 {
			t.Errorf("in the step %s the database lies beside the archive: %v", e.Step, all)
		}
	}
	made := c.create(t, o)
	m := made.Verified.Manifest
	if got := names(t, dir); len(got) != 1 || filepath.Join(dir, got[0]) != made.File {
		t.Errorf("left in the directory: %v, want %s only", got, made.File)
	}
	if want := c.server.Server.KV().Rev(); m.Revision < 100 || m.Revision > want || m.Keys != 104 || m.Hash == 0 || made.Verified.Hash != m.Hash {
		t.Errorf("got %+v, want revision %d or less, 104 keys and the hash %x", m, want, made.Verified.Hash)
	}
	if got := made.Verified.Decrypted["secrets"]; got != 1 || made.Verified.Certificates < 10 {
		t.Errorf("got %d secrets decrypted, %d certificates opened", got, made.Verified.Certificates)
	}
	for _, step := range []string{step.Snapshot, step.Pack, step.Extract, step.Restore, step.Read, step.Files} {
		if !steps[step] {
			t.Errorf("no event of the end of %s", step)
		}
	}
	t.Run("it is recorded in the cluster", func(t *testing.T) {
		answer, err := v3client.New(c.server.Server).Get(t.Context(), RecordKey)
		var r Record
		if err != nil || len(answer.Kvs) != 1 || json.Unmarshal(answer.Kvs[0].Value, &r) != nil || r.File != made.File || r.Revision != m.Revision || r.By != "c0" {
			t.Errorf("got %v %v", answer, err)
		}
	})
	t.Run("it is verified anywhere", func(t *testing.T) {
		copied := filepath.Join(t.TempDir(), filepath.Base(made.File))
		data, err := os.ReadFile(made.File)
		must(t, errors.Join(err, os.WriteFile(copied, data, 0o600)))
		v, err := verify.Verify(t.Context(), verify.Options{File: copied, Identities: id.String(), Checker: checker})
		if err != nil || v.Manifest.Revision != m.Revision || v.Decrypted["secrets"] != 1 {
			t.Errorf("got %+v, %v", v, err)
		}
		if left := names(t, filepath.Dir(copied)); len(left) != 1 {
			t.Errorf("left beside it: %v", left)
		}
		_, err = verify.Verify(t.Context(), verify.Options{File: copied, Checker: checker})
		if hint, _ := advice.Of(err); !errors.Is(err, archive.ErrEncrypted) || !strings.Contains(hint, "--identity") {
			t.Errorf("without an identity: got %v", err)
		}
	})
}

// Without a recipient no file with a secret is in the archive, and the warning says so.
func TestCreateWithoutSecrets(t *testing.T) {
	c, dir := newController(t, 1), t.TempDir()
	o := c.options(dir)
	o.PlainKeys = false
	made := c.create(t, o)
	a, err := archive.Open(made.File)
	must(t, err)
	defer a.Close()
	for name, data := range a.Files {
		if strings.Contains(string(data), "PRIVATE KEY") || name == "encryption-config.yaml" || strings.HasSuffix(name, ".kubeconfig") {
			t.Errorf("%s is in the archive", name)
		}
	}
	if len(a.Manifest.LeftOut) < 10 || len(made.Warnings) == 0 || len(made.Verified.NotChecked) != 1 {
		t.Errorf("left out: %v; warnings: %v; not checked: %v", a.Manifest.LeftOut, made.Warnings, made.Verified.NotChecked)
	}
}

// On a controller that has joined, the keys of the CAs are elsewhere: the archive cannot have
// them, and says so.
func TestCreateWithoutKeysOfCAs(t *testing.T) {
	c := newController(t, 1)
	l := c.config.Layout()
	must(t, errors.Join(os.Remove(l.CAKey()), os.Remove(l.EtcdCAKey())))
	made := c.create(t, c.options(t.TempDir()))
	if text := strings.Join(made.Warnings, "\n"); !strings.Contains(text, "ca-key.pem, etcd-ca-key.pem is not on this controller") {
		t.Errorf("got the warnings %q", made.Warnings)
	}
	if got := strings.Join(made.Verified.Lacks, " "); got != "ca-key.pem etcd-ca-key.pem" {
		t.Errorf("a verification says that the archive lacks %q", got)
	}
}

// What a verification must find that no sum shows: the content never was what it should be.
func TestVerifyFinds(t *testing.T) {
	c := newController(t, 10)
	made := c.create(t, c.options(t.TempDir()))
	other := pki.Layout{Dir: t.TempDir()}
	_, err := pki.Ensure(other, c.config.PKISpec())
	must(t, err)
	for _, tt := range []struct {
		name, want string
		change     func(m *archive.Manifest, database *[]byte, files map[string][]byte)
	}{
		{"fewer keys", "keys at revision", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Keys++ }},
		{"other keys", "the hash of its keys", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Hash++ }},
		{"an older database", "its revision is", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Revision += 1000 }},
		{"a newer database", "its revision is", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Revision-- }},
		{"a database compacted elsewhere", "compacted up to", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.CompactRevision++ }},
		{"not a database", "etcd.db", func(_ *archive.Manifest, database *[]byte, _ map[string][]byte) { *database = make([]byte, 64<<10) }},
		{"a damaged page", "etcd.db", func(_ *archive.Manifest, database *[]byte, _ map[string][]byte) {
			for i := 4096 * 4; i < len(*database)-32; i++ {
				(*database)[i] ^= 0x55
			}
		}},
		{"another encryption key", "does not open /registry/secrets/default/s", func(_ *archive.Manifest, _ *[]byte, files map[string][]byte) {
			data, err := os.ReadFile(other.EncryptionConfig())
			must(t, err)
			files["encryption-config.yaml"] = data
		}},
		{"a certificate of another cluster", "kubernetes.pem", func(_ *archive.Manifest, _ *[]byte, files map[string][]byte) {
			data, err := os.ReadFile(other.Cert(pki.NameKubernetes))
			must(t, err)
			files["kubernetes.pem"] = data
		}},
		{"a newer kthwd's", "newer", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Format++ }},
		{"a newer minor of etcd", "no way back", func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Etcd = "3.99.0" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := rewrite(t, made.File, tt.change)
			_, err := verify.Verify(t.Context(), verify.Options{File: file, Checker: checker})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if left := names(t, filepath.Dir(file)); len(left) != 1 {
				t.Errorf("left beside the archive: %v", left)
			}
		})
	}
}

// rewrite makes an archive with right sums and a changed content.
func rewrite(t *testing.T, file string, change func(m *archive.Manifest, database *[]byte, files map[string][]byte)) string {
	t.Helper()
	a, err := archive.Open(file)
	must(t, err)
	defer a.Close()
	dir := t.TempDir()
	must(t, a.Extract(dir, nil))
	database, err := os.ReadFile(filepath.Join(dir, archive.Database))
	must(t, err)
	m := a.Manifest
	change(&m, &database, a.Files)
	for i, f := range m.Files {
		data := a.Files[strings.TrimPrefix(f.Name, archive.FilesDir)]
		if f.Name == archive.Database {
			data = database
		}
		m.Files[i] = archive.NewFile(f.Name, data, 0o600, f.Secret)
	}
	open := func(name string) (io.ReadCloser, error) {
		if name == archive.Database {
			return io.NopCloser(strings.NewReader(string(database))), nil
		}
		return io.NopCloser(strings.NewReader(string(a.Files[strings.TrimPrefix(name, archive.FilesDir)]))), nil
	}
	changed := filepath.Join(t.TempDir(), "changed")
	must(t, archive.Write(changed, m, open, nil))
	return changed
}

// TestFormat1 verifies and restores an archive of format 1, which has the sum of the database in its manifest.
func TestFormat1(t *testing.T) {
	c := newController(t, 5)
	file := rewrite(t, c.create(t, c.options(t.TempDir())).File, func(m *archive.Manifest, _ *[]byte, _ map[string][]byte) { m.Format = 1 })
	v, err := verify.Verify(t.Context(), verify.Options{File: file, Checker: checker})
	must(t, err)
	if v.Manifest.Format != 1 || v.Manifest.Database().SHA256 == "" || v.Manifest.Keys != 9 {
		t.Errorf("got %+v", v.Manifest)
	}
	o := restoreOptions(t, file)
	r, err := BeginRestore(o)
	must(t, err)
	defer r.Close()
	must(t, r.Run(t.Context()))
	checkRestored(t, o.Config, 5)
}

func TestCreateRefuses(t *testing.T) {
	c, dir := newController(t, 1), t.TempDir()
	t.Run("a verification that fails", func(t *testing.T) {
		o := c.options(dir)
		o.Checker = func(ctx context.Context, _, _ string) *exec.Cmd { return exec.CommandContext(ctx, "false") }
		if _, err := Create(t.Context(), o); err == nil {
			t.Error("an archive was made that nobody verified")
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := c.options(dir)
		o.Report = func(e step.Event) {
			if e.Step == step.Restore {
				cancel()
			}
		}
		if _, err := Create(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("a dead process's directory is removed", func(t *testing.T) {
		dead := filepath.Join(dir, workdir.Prefix+"1")
		must(t, errors.Join(os.Mkdir(dead, 0o700), os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600), os.WriteFile(filepath.Join(dead, "etcd.db"), nil, 0o600)))
		c.create(t, c.options(dir))
		if left := names(t, dir); len(left) != 1 || strings.HasPrefix(left[0], ".") {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("a learner", func(t *testing.T) {
		dir := t.TempDir()
		_, err := Create(t.Context(), startLearner(t).options(dir))
		harness.CheckRefusal(t, err, "this member is a learner", "kthwd member list")
		if left := names(t, dir); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("no member", func(t *testing.T) {
		o := c.options(dir)
		o.Layout = pki.Layout{Dir: t.TempDir()}
		_, err := Create(t.Context(), o)
		harness.CheckRefusal(t, err, "no etcd member runs", "start kthwd first")
	})
}

// restoreOptions are those of a blank machine with another name and address.
func restoreOptions(t *testing.T, file string) RestoreOptions {
	t.Helper()
	c := config.Default().Controller
	c.DataDir, c.Name, c.BindAddress, c.AdvertiseAddress = filepath.Join(t.TempDir(), "kubernetes"), "new", "127.0.0.2", "127.0.0.2"
	must(t, c.Resolve())
	return RestoreOptions{File: file, Config: c, Settings: []byte("name: new\n"), Kthwd: "v0.1.0", Log: noLog, Report: func(step.Event) {}}
}

// checkRestored checks that a data directory is complete, and that of the archive's cluster.
func checkRestored(t *testing.T, c config.Controller, keys int) {
	t.Helper()
	l := c.Layout()
	if report, err := pki.Check(l, c.PKISpec()); err != nil || len(report.Missing) > 0 {
		t.Errorf("the files: %v, %v", report.Missing, err)
	}
	if err := etcdfiles.Guard(l, nil, etcdfiles.Versions("v0.1.0")); err != nil {
		t.Errorf("a start would be refused: %v", err)
	}
	for _, name := range names(t, l.Dir) {
		if strings.HasPrefix(name, ".restor") || name == "restore.json" {
			t.Errorf("left: %s", name)
		}
	}
	e, err := embedded.OpenOffline(t.Context(), c.Name, l.Etcd(), true, noLog)
	must(t, err)
	defer e.Close()
	client := v3client.New(e.Server)
	answer, err := client.Get(t.Context(), "/registry/configmaps/default/c0")
	if err != nil || len(answer.Kvs) != 1 || answer.Header.Revision <= bump {
		t.Errorf("a key: %v, %v", answer, err)
	}
	for _, gone := range []string{"/registry/masterleases/10.0.0.1", "/kthwd/joins/1"} {
		if answer, err := client.Get(t.Context(), gone); err != nil || len(answer.Kvs) != 0 {
			t.Errorf("%s is still there", gone)
		}
	}
	if n := len(e.Server.Cluster().Members()); n != 1 {
		t.Errorf("%d members", n)
	}
	// A watcher from back then must be told to begin anew.
	w := <-client.Watch(t.Context(), "/", clientv3.WithRev(int64(keys)))
	if w.CompactRevision == 0 {
		t.Errorf("a watcher of back then goes on: %+v", w)
	}
}

func TestRestore(t *testing.T) {
	c := newController(t, 5)
	made := c.create(t, c.options(t.TempDir()))
	o := restoreOptions(t, made.File)
	r, err := BeginRestore(o)
	must(t, err)
	if _, err := os.Stat(o.Config.DataDir); err == nil {
		t.Error("a plan has made the data directory")
	}
	must(t, r.Run(t.Context()))
	r.Close()
	if back := r.WayBack(); len(back) != 0 {
		t.Errorf("a way back to a blank machine: %q", back)
	}
	checkRestored(t, o.Config, 5)
	kubeconfig, err := os.ReadFile(o.Config.Layout().Kubeconfig(pki.NameScheduler))
	if err != nil || !strings.Contains(string(kubeconfig), "server: https://127.0.0.2:6443") {
		t.Errorf("the scheduler's kubeconfig: %s, %v", kubeconfig, err)
	}
	if old, err := etcdfiles.ReadIDs(filepath.Join(c.config.Layout().Etcd(), "member", "wal")); err != nil {
		t.Error(err)
	} else if is, err := etcdfiles.ReadRecord(o.Config.Layout()); err != nil || is.Cluster == old.Cluster || is.Member == old.Member {
		t.Errorf("got the record %+v, %v, want another cluster and member than %+v", is, err, old)
	}
	t.Run("again, onto data", func(t *testing.T) {
		_, err := BeginRestore(o)
		harness.CheckRefusal(t, err, "holds data of etcd", "--replace-data")
		o.Replace = true
		again, err := BeginRestore(o)
		must(t, err)
		defer again.Close()
		must(t, again.Run(t.Context()))
		checkRestored(t, o.Config, 5)
		if _, err := os.Stat(filepath.Join(again.Aside, "member", "snap", "db")); err != nil {
			t.Errorf("the old data: %v", err)
		}
	})
	t.Run("and back", func(t *testing.T) { restoreAndBack(t, o) })
	t.Run("two in one second", func(t *testing.T) { restoreInOneSecond(t, o) })
	t.Run("a running kthwd", func(t *testing.T) {
		lock, err := datadir.Lock(o.Config.Layout())
		must(t, err)
		defer lock.Close()
		_, err = BeginRestore(o)
		harness.CheckRefusal(t, err, "in use by another kthwd", "stop that one first")
	})
}

// restoreAndBack restores onto data, and goes back by the commands that the restore names.
func restoreAndBack(t *testing.T, o RestoreOptions) {
	t.Helper()
	o.Replace = true
	l := o.Config.Layout()
	must(t, os.WriteFile(l.Cert("of-before"), []byte("before"), 0o600)) // has no place in the restored cluster
	must(t, os.Remove(l.Names()))                                       // a restore makes it
	inUse := func() map[string]string {
		all := sums(t, l.Dir)
		for name := range all {
			if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "etcd/.") || name == filepath.Base(l.Lock()) {
				delete(all, name)
			}
		}
		return all
	}
	before := inUse()
	r, err := BeginRestore(o)
	must(t, err)
	must(t, r.Run(t.Context()))
	r.Close()
	restored := inUse()
	if equal(before, restored) {
		t.Fatal("the restore has changed nothing")
	}
	commands := strings.Join(r.WayBack(), "\n")
	out, err := exec.CommandContext(t.Context(), "sh", "-euc", commands).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	if after := inUse(); !equal(before, after) {
		t.Errorf("after\n%s\ngot %v\nwant %v", commands, slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
	}
	if err := exec.CommandContext(t.Context(), "sh", "-euc", commands).Run(); err == nil || !equal(before, inUse()) {
		t.Errorf("run again: %v, and the files are %v", err, inUse())
	}
	checkRestored(t, o.Config, 5)
}

// restoreInOneSecond restores three times at one moment: the data of before is in another place each time.
func restoreInOneSecond(t *testing.T, o RestoreOptions) {
	t.Helper()
	o.Replace = true
	now, kept := time.Now(), ""
	for range 3 {
		r, err := BeginRestore(o)
		must(t, err)
		r.choose(now)
		must(t, r.checkData())
		must(t, r.Run(t.Context()))
		r.Close()
		for _, dir := range []string{kept, r.Aside} {
			if kept == r.Aside || dir != "" && !datadir.Exists(filepath.Join(dir, "member", "snap", "db")) {
				t.Errorf("the old data in %q: gone, or the same as of another restore", dir)
			}
		}
		kept = r.Aside
	}
}

// endsWith is a context that has ended once a file is there.
type endsWith struct {
	context.Context
	file string
}

func (e endsWith) Err() error {
	if datadir.Exists(e.file) {
		return context.Canceled
	}
	return e.Context.Err()
}

// After any step at which a restore dies, either nothing has changed, or the next start
// finishes it; another restore works in both cases.
func TestRestoreDies(t *testing.T) {
	c := newController(t, 5)
	made := c.create(t, c.options(t.TempDir()))
	first := restoreOptions(t, made.File)
	r, err := BeginRestore(first)
	must(t, err)
	n := len(r.steps(t.Context()))
	r.Close()
	t.Run("interrupted once it is committed", func(t *testing.T) {
		o := restoreOptions(t, made.File)
		r, err := BeginRestore(o)
		must(t, err)
		defer r.Close()
		must(t, r.Run(endsWith{t.Context(), o.Config.Layout().Restore()}))
		r.Close()
		checkRestored(t, o.Config, 5)
	})
	for steps := range n {
		t.Run(fmt.Sprintf("after %d steps", steps), func(t *testing.T) {
			o := restoreOptions(t, made.File)
			must(t, os.MkdirAll(o.Config.DataDir, 0o700))
			r, err := BeginRestore(o)
			must(t, err)
			must(t, errors.Join(r.takeLock(), os.MkdirAll(r.layout.Etcd(), 0o700)))
			all := r.steps(t.Context())
			for _, s := range all[:steps] {
				must(t, s.do())
			}
			committed := all[steps].committed
			r.Close() // the process dies here

			l := o.Config.Layout()
			lock, err := datadir.Lock(l)
			must(t, err)
			done, err := datadir.FinishRestore(l) // as a start does
			must(t, err)
			lock.Close()
			if done != committed {
				t.Fatalf("finished: %v, want %v", done, committed)
			}
			if !committed {
				if l.HasData() || datadir.Exists(l.CA()) {
					t.Fatalf("something has changed: %v", names(t, l.Dir))
				}
				again, err := BeginRestore(o)
				must(t, err)
				defer again.Close()
				must(t, again.Run(t.Context()))
				again.Close()
				if left := names(t, l.Etcd()); len(left) != 1 {
					t.Errorf("left in etcd's directory: %v", left)
				}
			}
			checkRestored(t, o.Config, 5)
		})
	}
}

func TestRestoreRefuses(t *testing.T) {
	c, id := newController(t, 1), newIdentity(t)
	dir := t.TempDir()
	o := c.options(dir)
	o.PlainKeys = false
	bare := c.create(t, o).File
	t.Run("secrets that are nowhere", func(t *testing.T) {
		_, err := BeginRestore(restoreOptions(t, bare))
		harness.CheckRefusal(t, err, "encryption-config.yaml", "put copies of these files into")
	})
	t.Run("secrets that lie beside", func(t *testing.T) {
		o := restoreOptions(t, bare)
		must(t, os.MkdirAll(o.Config.DataDir, 0o700))
		for _, name := range []string{"ca-key.pem", "etcd-ca-key.pem", "service-account-key.pem", "front-proxy-ca-key.pem", "encryption-config.yaml"} {
			data, err := os.ReadFile(filepath.Join(c.config.DataDir, name))
			must(t, errors.Join(err, os.WriteFile(filepath.Join(o.Config.DataDir, name), data, 0o600)))
		}
		r, err := BeginRestore(o)
		must(t, err)
		defer r.Close()
		must(t, r.Run(t.Context()))
		checkRestored(t, o.Config, 1)
	})
	t.Run("files of another cluster", func(t *testing.T) {
		full := c.create(t, c.options(t.TempDir())).File
		o := restoreOptions(t, full)
		_, err := pki.Ensure(o.Config.Layout(), o.Config.PKISpec())
		must(t, err)
		_, err = BeginRestore(o)
		harness.CheckRefusal(t, err, "has other files than the archive: ca-key.pem, ca.pem", "--replace-data")
	})
	t.Run("files outside the data directory", func(t *testing.T) {
		full := c.create(t, c.options(t.TempDir())).File
		key, err := os.ReadFile(c.config.Layout().Key(pki.NameServiceAccount))
		must(t, err)
		for _, tt := range []struct {
			name    string
			content []byte // nil for no file
			refused bool
		}{{"that of the archive", key, false}, {"another", []byte("another"), true}, {"none", nil, true}} {
			o := restoreOptions(t, full)
			at := filepath.Join(t.TempDir(), "sa.key")
			if tt.content != nil {
				must(t, os.WriteFile(at, tt.content, 0o600))
			}
			o.Config.Files, o.Replace = []string{"service-account-key.pem=" + at}, true
			r, err := BeginRestore(o)
			if tt.refused {
				harness.CheckRefusal(t, err, at+" for service-account-key.pem", "take service-account-key.pem out of files")
				continue
			}
			must(t, err)
			r.Close()
		}
		o := restoreOptions(t, bare) // the archive has no secrets
		must(t, os.MkdirAll(o.Config.DataDir, 0o700))
		for _, name := range []string{"ca-key.pem", "etcd-ca-key.pem", "service-account-key.pem", "front-proxy-ca-key.pem", "encryption-config.yaml"} {
			o.Config.Files = append(o.Config.Files, name+"="+filepath.Join(c.config.DataDir, name))
		}
		r, err := BeginRestore(o)
		must(t, err)
		defer r.Close()
		must(t, r.Run(t.Context()))
		checkRestored(t, o.Config, 1)
	})
	t.Run("an identity of somebody else", func(t *testing.T) {
		o := c.options(t.TempDir())
		o.PlainKeys, o.Recipients = false, []age.Recipient{id.Recipient()}
		ro := restoreOptions(t, c.create(t, o).File)
		ro.Identities = []age.Identity{newIdentity(t)}
		_, err := BeginRestore(ro)
		harness.CheckRefusal(t, err, "for other recipients", "--identity")
	})
	t.Run("a log elsewhere", func(t *testing.T) {
		o := restoreOptions(t, bare)
		o.Config.EtcdArgs = []string{"wal-dir=/elsewhere"}
		_, err := BeginRestore(o)
		harness.CheckRefusal(t, err, "/elsewhere", "leave the argument out")
	})
}

func archiveSum(data []byte) string { return archive.NewFile("", data, 0, false).SHA256 }
