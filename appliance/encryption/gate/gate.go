// Package gate gives the API server its encryption configuration.
//
//	g := gate.New(gate.Config{File: path, Etcd: member, …})
//	g.Serve(ctx, transformers, hash, id) // by the API server, once it is built
//	go g.Run(ctx)                        // notices a file that was edited
//
// The API server's own reload believes each file that can be parsed, also one without the key of what
// is stored. The gate takes its place: it tries a file on every value in etcd, and only then gives it
// to the API server.
package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig/metrics"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/encryption/values"
	"kthwd/appliance/etcd"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

const lookEvery = 2 * time.Second // for a file that was edited

// ProofTime is for a look at all of etcd.
const ProofTime = 10 * time.Minute

// Config configures a Gate.
type Config struct {
	File   string       // of --encryption-provider-config; empty for none
	Prefix string       // below which the API server stores
	Etcd   *etcd.Member // whose values a file must open
	Reload bool         // whether the user's flags say that an edited file is loaded, on several controllers, too
	Log    *slog.Logger

	// Loaded is called with the path when the API server uses a file of a rotation; nil for none.
	Loaded func(path string)

	// Edited is called with the path when the API server uses a file that was edited by hand; nil
	// for none.
	Edited func(path string)
}

// Gate gives the API server its encryption configuration. Make one with New. Its
// methods may be called from any goroutine.
type Gate struct {
	cfg Config

	loading sync.Mutex // one file at a time

	mu        sync.Mutex
	transform *encryptionconfig.DynamicTransformers // nil while no API server runs
	server    context.Context                       // ends with that API server
	id, hash  string                                // of the API server, and of the file that it uses
	fixed     error                                 // why it cannot use another file; nil if it can
	refused   *refusal                              // the file that is there and not used; nil for none
}

// refusal is a file that is not used.
type refusal struct {
	hash string
	err  error
	at   time.Time
}

// New makes a Gate. It does no I/O.
func New(c Config) *Gate { return &Gate{cfg: c} }

// File is that of --encryption-provider-config; empty for none.
func (g *Gate) File() string { return g.cfg.File }

// Loaded makes known that the API server uses a file of a rotation.
func (g *Gate) Loaded() {
	if g.cfg.Loaded != nil {
		g.cfg.Loaded(g.cfg.File)
	}
}

// Serve makes the gate responsible for an API server whose file has this hash. server ends with
// the API server.
func (g *Gate) Serve(server context.Context, t *encryptionconfig.DynamicTransformers, hash, id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.server, g.transform, g.hash, g.id, g.refused, g.fixed = server, t, hash, id, nil, nil
}

// Fixed makes known that the API server uses its file until its next start, and why.
func (g *Gate) Fixed(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.transform, g.fixed = nil, why
}

// errNotServing means that there is no API server that could use a file.
var errNotServing = errors.New("its API server does not run")

// InUse is the hash of the file that the API server uses.
func (g *Gate) InUse() (hash string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fixed != nil {
		return "", g.fixed
	}
	if g.transform == nil || g.server.Err() != nil {
		return "", errNotServing
	}
	return g.hash, nil
}

// client connects to the member of this process. The caller closes it.
func (g *Gate) client() (*clientv3.Client, error) {
	server := g.cfg.Etcd.Running()
	if server == nil {
		return nil, errors.New("etcd has not started")
	}
	return v3client.New(server.Server), nil
}

// Load makes the API server use the file as it is, if that opens all that is stored. It
// returns the hash of the file in use.
func (g *Gate) Load(ctx context.Context) (string, error) {
	data, err := os.ReadFile(g.cfg.File)
	if err != nil {
		return "", err
	}
	g.loading.Lock()
	defer g.loading.Unlock()
	using, err := g.InUse()
	if err != nil || using == keyfile.Hash(data) {
		g.note(keyfile.Hash(data), nil)
		return using, err
	}
	err = g.use(ctx, data)
	g.note(keyfile.Hash(data), err)
	if err != nil {
		return using, err
	}
	return keyfile.Hash(data), nil
}

// use gives the API server a file, if it opens all that is stored.
func (g *Gate) use(ctx context.Context, data []byte) error {
	g.mu.Lock()
	server, id := g.server, g.id
	g.mu.Unlock()
	life, end := context.WithCancel(server)
	c, err := g.Try(ctx, life, data, id)
	if err != nil {
		end()
		metrics.RecordEncryptionConfigAutomaticReloadFailure(id)
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.server != server {
		end()
		return errNotServing
	}
	g.transform.Set(c.Transformers, end, c.HealthChecks[0], c.KMSCloseGracePeriod)
	g.hash = keyfile.Hash(data)
	metrics.RecordEncryptionConfigAutomaticReloadSuccess(id, g.hash)
	g.cfg.Log.Info("the API server uses another encryption configuration", "file", g.cfg.File, "hash", g.hash)
	return nil
}

// Try reads a file as the API server would, asks its key servers, and opens every value in
// etcd with it. The result works until life ends.
func (g *Gate) Try(ctx, life context.Context, data []byte, id string) (*encryptionconfig.EncryptionConfiguration, error) {
	c, err := keyfile.Load(life, data, id)
	if err != nil {
		return nil, advice.With(fmt.Errorf("%s: %w", g.cfg.File, err), "correct the file; it must keep the old key, which stored secrets need")
	}
	if err := g.Answers(ctx, c); err != nil {
		return nil, err
	}
	client, err := g.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, ProofTime)
	defer cancel()
	r, err := g.Reader(data, c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.cfg.File, err)
	}
	_, bad, lost, err := r.Look(ctx, client, true)
	if err != nil {
		return nil, err
	}
	if lost > 0 {
		return nil, g.Unreadable(r, bad, lost)
	}
	return c, nil
}

// Reader opens what is stored with a file and what was loaded from it.
func (g *Gate) Reader(data []byte, c *encryptionconfig.EncryptionConfiguration) (values.Reader, error) {
	r := values.Reader{Root: strings.TrimRight(g.cfg.Prefix, "/") + "/", Keys: c.Transformers}
	f, err := keyfile.Parse(data)
	if err != nil {
		return r, err
	}
	for _, group := range f.Groups {
		for _, resource := range group.Resources {
			if !group.Encrypts() {
				r.Plain = append(r.Plain, schema.ParseGroupResource(resource))
			}
		}
	}
	return r, nil
}

// Unreadable names what a file cannot open, and the key that it lacks.
func (g *Gate) Unreadable(r values.Reader, bad []values.Problem, lost int) error {
	first := bad[0]
	by, do := "written without a key, and the file lacks identity", "add identity: {} as the last provider, or put the old file back"
	if first.Prefix != "" {
		by = "written with the key " + values.KeyName(first.Prefix)
		do = "put that key back into " + filepath.Base(g.cfg.File) + ", under the same name and after the first one"
	}
	return advice.With(fmt.Errorf("%s would make %d objects unreadable, such as %s, %s", g.cfg.File, lost, text.Line(r.ObjectOf(first.Key)), by), do)
}

// Answers asks the key servers of a configuration.
func (g *Gate) Answers(ctx context.Context, c *encryptionconfig.EncryptionConfiguration) error {
	if err := keyfile.Answers(ctx, c); err != nil {
		return advice.With(fmt.Errorf("%s: a key server does not answer: %s", g.cfg.File, text.Joined(err.Error())), "start the KMS plugin, or correct its endpoint")
	}
	return nil
}

// note keeps why a file is not used.
func (g *Gate) note(hash string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		g.refused = nil
	case errors.Is(err, errNotServing), errors.Is(err, context.Canceled):
	case g.refused == nil || g.refused.hash != hash:
		g.refused = &refusal{hash, err, time.Now()}
		g.cfg.Log.Warn("the encryption configuration is not loaded: the one before stays in use", "err", err)
	default:
		g.refused.err = err
	}
}

// Run looks for an edited file until ctx ends. A controller without others uses it if it
// opens all that is stored.
func (g *Gate) Run(ctx context.Context) {
	var before, tried unix.Stat_t
	for g.cfg.File != "" && ctx.Err() == nil {
		supervise.Sleep(ctx, lookEvery)
		var now unix.Stat_t
		if _, err := g.InUse(); err != nil || unix.Stat(g.cfg.File, &now) != nil || now.Size == 0 {
			continue
		}
		same := func(a, b unix.Stat_t) bool {
			return a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
		}
		// A file that is still being written is looked at when it rests.
		if same(now, before) && !same(now, tried) {
			tried = now
			g.edited(ctx)
		}
		before = now
	}
}

// edited looks at a file that is new.
func (g *Gate) edited(ctx context.Context) {
	data, err := os.ReadFile(g.cfg.File)
	if err != nil {
		return
	}
	g.loading.Lock() // a rotation may be about to use the file
	using, err := g.InUse()
	g.loading.Unlock()
	if err != nil || using == keyfile.Hash(data) {
		g.note(keyfile.Hash(data), nil)
		return
	}
	if g.cfg.Reload || g.cfg.Etcd.Sharers() <= 1 {
		if _, err := g.Load(ctx); err == nil && g.cfg.Edited != nil { // Load keeps the error
			g.cfg.Edited(g.cfg.File)
		}
		return
	}
	life, end := context.WithCancel(ctx)
	defer end()
	_, err = g.Try(ctx, life, data, "")
	g.loading.Lock()
	defer g.loading.Unlock()
	if using, _ := g.InUse(); using == keyfile.Hash(data) { // meanwhile, by a rotation
		return
	}
	if err != nil {
		g.note(keyfile.Hash(data), err)
		return
	}
	g.note(keyfile.Hash(data), advice.With(fmt.Errorf("%s was edited, and the API server uses the file from before until its next start, because all controllers need the same keys", g.cfg.File),
		"put the file from before back, and let kthwd encryption rotate change the key on all of them"))
}

// kindFile is the kind of the finding about a file that is not used.
const kindFile = "encryption_file"

// Findings tells of a file that is not used.
func (g *Gate) Findings() []status.Finding {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused == nil {
		return nil
	}
	do, _ := advice.Of(g.refused.err)
	return []status.Finding{{Health: status.Degraded, Kind: kindFile, Text: "not loaded: " + g.refused.err.Error(), Do: do, Since: g.refused.at}}
}

var fileRefused = prometheus.NewDesc("kthwd_encryption_file_refused", "1 if the encryption configuration on the disk is not the one that the API server uses.", nil, nil)

// Describe implements prometheus.Collector.
func (g *Gate) Describe(ch chan<- *prometheus.Desc) { ch <- fileRefused }

// Collect implements prometheus.Collector.
func (g *Gate) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := 0.0
	if g.refused != nil {
		v = 1
	}
	ch <- prometheus.MustNewConstMetric(fileRefused, prometheus.GaugeValue, v)
}
