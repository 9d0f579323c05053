// Package agree compares the effective flags of the controllers of a cluster.
//
//	c := &agree.Controllers{Member: member, Layout: l, Args: args, Log: log, …}
//	go c.Run(ctx)
//	c.Findings(); c.Diff(ctx)
//
// Each controller publishes its flags in etcd below /kthwd/config/, under the ID of its member:
// so the comparison needs no API and no RBAC, and what a removed member left is ignored. The
// values of flags that must agree are published as they are; they are no secrets. Of every
// other flag there is only an HMAC with a key that all controllers have and etcd does not, so
// that a short value cannot be guessed from it. Values are compared as the programs read them, so
// two spellings of one value, or a default that is written out, are no difference. Run does not
// end a controller: what differs is a finding.
package agree

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/config"
	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Prefix is the prefix of the records in etcd.
const Prefix = "/kthwd/config/"

// Kind is the kind of the finding about flags that must agree.
const Kind = "config_differs"

const (
	every  = 15 * time.Second // pause between two comparisons
	within = 5 * time.Second  // for one of them
)

// Controllers publishes the flags of this controller and compares those of all. The exported
// fields are set before Run.
type Controllers struct {
	Member   *etcd.Member
	Layout   pki.Layout
	Address  string // of this controller
	Args     map[string][]program.Arg
	Versions map[string]string // of kthwd, Kubernetes and etcd
	Profile  string            // config.ProfileGuide or config.ProfileCIS
	Log      *slog.Logger

	// Hosts returns the names and addresses in the certificate of the API server here. It may be
	// nil, and must be safe for concurrent use.
	Hosts func() []string

	// Read is what a program reads in the values of a flag that is given once for each, and its
	// default; false if that is not known, and the values are compared as they are written. It may
	// be nil, and must be safe for concurrent use.
	Read func(program, key string, values ...string) (is, otherwise string, ok bool)

	once  sync.Once
	given map[string]given // of Args

	mu    sync.Mutex
	known map[string]string // readings of the values in records
	rows  []Row
	since map[string]time.Time // by row: when it was seen first
}

// record is what one controller publishes.
type record struct {
	Name     string            `json:"name"`
	Versions map[string]string `json:"versions"`
	Profile  string            `json:"profile,omitempty"`  // "" from a kthwd that did not publish it yet
	Plain    map[string]string `json:"plain"`              // "program key": the value as it is written, of flags that must agree
	Hashed   map[string]string `json:"hashed"`             // "program key": an HMAC of the value, of the others
	HashedBy string            `json:"hashedBy,omitempty"` // ID of the service-account key that the HMACs are made with, and of what
	Hosts    []string          `json:"hosts,omitempty"`    // names and addresses in the API server's certificate
}

// Row is one flag, or one version, that is not the same everywhere.
type Row struct {
	Program string            `json:"program"`
	Key     string            `json:"key"`
	Class   Class             `json:"class"`
	Values  map[string]string `json:"values"` // by controller; "#…" stands for a value that is not published, "" for none
}

// Run publishes and compares until ctx ends.
func (c *Controllers) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := c.round(ctx); err != nil && ctx.Err() == nil {
			c.Log.Debug("the flags of the controllers are not compared", "err", err)
		}
		supervise.Sleep(ctx, every)
	}
}

func (c *Controllers) round(ctx context.Context) error {
	server := c.Member.Running()
	if server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	client := v3client.New(server.Server)
	defer client.Close()
	if err := c.publish(ctx, client, server); err != nil {
		return err
	}
	all, err := read(ctx, client, server)
	if err != nil {
		return err
	}
	c.note(compare(all, c.reads), time.Now())
	return nil
}

// publish writes the record of this controller, unless etcd has the same.
func (c *Controllers) publish(ctx context.Context, client *clientv3.Client, server *embed.Etcd) error {
	own, err := c.own(server)
	if err != nil {
		return err
	}
	value, err := json.Marshal(own)
	if err != nil {
		return err
	}
	key := Prefix + server.Server.MemberID().String()
	there, err := client.Get(ctx, key, clientv3.WithSerializable())
	if err != nil || len(there.Kvs) == 1 && string(there.Kvs[0].Value) == string(value) {
		return err
	}
	_, err = client.Put(ctx, key, string(value))
	return err
}

func (c *Controllers) own(server *embed.Etcd) (record, error) {
	r := record{Name: server.Server.Cfg.Name, Versions: c.Versions, Profile: c.Profile, Plain: map[string]string{}, Hashed: map[string]string{}}
	secrets, err := pki.SharedSecrets(c.Layout, "config record")
	if err != nil {
		return r, err
	}
	if c.Hosts != nil {
		r.Hosts = c.Hosts()
	}
	key := secrets[0].Key
	r.HashedBy = secrets[0].ID + hashedAsRead
	for id, g := range c.givenOnce() {
		name, flag, _ := strings.Cut(id, " ")
		switch class := classOf(name, flag); {
		case class == Must:
			r.Plain[id] = g.written
		case class == Should && !g.isDefault:
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(id + "\x00" + c.plain(g.read)))
			r.Hashed[id] = "#" + hex.EncodeToString(mac.Sum(nil)[:6])
		}
	}
	return r, nil
}

// Private returns the handler of kthwd config diff, for the unix socket.
func (c *Controllers) Private() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"GET /config/diff": func(w http.ResponseWriter, r *http.Request) {
		rows, err := c.Diff(r.Context())
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(rows) // it fails only when the client has gone
	}}
}

// read returns the records of the present members, by name.
func read(ctx context.Context, client *clientv3.Client, server *embed.Etcd) (map[string]record, error) {
	answer, err := client.Get(ctx, Prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	all := map[string]record{}
	for _, m := range server.Server.Cluster().Members() {
		for _, kv := range answer.Kvs {
			var r record
			if string(kv.Key) == Prefix+m.ID.String() && json.Unmarshal(kv.Value, &r) == nil {
				all[cmp.Or(m.Name, m.ID.String())] = r
			}
		}
	}
	return all, nil
}

// AllHosts returns the names and addresses in the certificates of the API servers of all controllers:
// those here, and those in the records of the others.
func (c *Controllers) AllHosts(ctx context.Context, client *clientv3.Client) ([]string, error) {
	server := c.Member.Running()
	if server == nil {
		return nil, errors.New("etcd does not run")
	}
	all, err := read(ctx, client, server)
	if err != nil {
		return nil, err
	}
	return hosts(all, c.Hosts()), nil
}

// hosts joins the hosts of records with those of this controller.
func hosts(all map[string]record, here []string) []string {
	joined := slices.Clone(here)
	for _, r := range all {
		joined = append(joined, r.Hosts...)
	}
	slices.Sort(joined)
	return slices.Compact(joined)
}

// hashedAlike reports whether HMACs can be compared: not for the moment in which a rotation of the
// service-account key has reached some controllers and others not yet, nor beside a kthwd that
// made them of the values as they are written.
func hashedAlike(all map[string]record) bool {
	by := ""
	for _, r := range all {
		if by != "" && r.HashedBy != "" && r.HashedBy != by {
			return false
		}
		by = cmp.Or(by, r.HashedBy)
	}
	return true
}

// compare returns what is not the same in all records: what must agree first. Of flags that must
// agree, reads says what a program makes of them in a record.
func compare(all map[string]record, reads func(r record, id string) string) (rows []Row) {
	values := map[string]map[string]string{} // by flag, then by controller
	add := func(id, name, value string) {
		if values[id] == nil {
			values[id] = map[string]string{}
		}
		values[id][name] = value
	}
	alike := hashedAlike(all)
	for name, r := range all {
		for what, v := range r.Versions {
			add(what+" version", name, v)
		}
		for id, v := range r.Plain {
			add(id, name, v)
		}
		for id, v := range r.Hashed {
			if alike {
				add(id, name, v)
			}
		}
	}
	for name, r := range all {
		if r.Profile != "" {
			add(ownProgram+" "+keyProfile, name, r.Profile)
		}
	}
	if len(values[ownProgram+" "+keyProfile]) < len(all) { // one of them does not publish it
		delete(values, ownProgram+" "+keyProfile)
	}
	for id, by := range values {
		distinct := map[string]bool{}
		for name := range all {
			by[name] += "" // a flag that is not given
			distinct[by[name]] = true
		}
		p, key, _ := strings.Cut(id, " ")
		if class := classOf(p, key); len(distinct) > 1 && !(class == Must && p != ownProgram && alikeAsRead(all, id, reads)) {
			rows = append(rows, Row{Program: p, Key: key, Class: class, Values: by})
		}
	}
	order := map[Class]int{Must: 0, Should: 1, Differs: 2}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(order[a.Class]-order[b.Class], strings.Compare(a.Program, b.Program), strings.Compare(a.Key, b.Key))
	})
	return rows
}

// Among returns the rows in which the controllers with these names differ from each other, with
// their values only; without names all rows.
func Among(rows []Row, names []string) []Row {
	if len(names) == 0 {
		return rows
	}
	kept := []Row{}
	for _, r := range rows {
		r.Values = maps.Clone(r.Values)
		maps.DeleteFunc(r.Values, func(name, _ string) bool { return !slices.Contains(names, name) })
		distinct := map[string]bool{}
		for _, v := range r.Values {
			distinct[v] = true
		}
		if len(distinct) > 1 {
			kept = append(kept, r)
		}
	}
	return kept
}

// The row of the profile: a setting of kthwd's, not of one of the programs.
const (
	ownProgram = "kthwd"
	keyProfile = "profile"
)

func (r Row) isProfile() bool { return r.Program == ownProgram && r.Key == keyProfile }

// profileText says which controllers run which profile: c1 runs profile cis, c0 and c2 the guide's.
func (r Row) profileText() string {
	by := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Values)) {
		by[r.Values[name]] = append(by[r.Values[name]], name)
	}
	var parts []string
	for _, profile := range slices.Sorted(maps.Keys(by)) {
		what := "profile " + profile
		if profile == config.ProfileGuide {
			what = "the guide's"
		}
		if len(parts) == 0 {
			what = map[bool]string{true: "run ", false: "runs "}[len(by[profile]) > 1] + what
		}
		parts = append(parts, strings.Join(by[profile], " and ")+" "+what)
	}
	return strings.Join(parts, ", ") + ": the API groups that are served, and Pod Security, depend on the controller that answers"
}

// profilesIn returns the profile of each controller; nil when all have the same.
func profilesIn(rows []Row) map[string]string {
	for _, r := range rows {
		if r.isProfile() {
			return r.Values
		}
	}
	return nil
}

// follows reports whether a flag differs because the profiles do: the profile sets it, and it
// is the same on all controllers with the same profile.
func (r Row) follows(profiles map[string]string) bool {
	if profiles == nil || !slices.Contains(program.OfProfile(r.Program), r.Key) {
		return false
	}
	of := map[string]string{}
	for name, v := range r.Values {
		if before, again := of[profiles[name]]; again && before != v {
			return false
		}
		of[profiles[name]] = v
	}
	return true
}

func (r Row) id() string { return r.Program + " " + r.Key }

// note keeps the result, and since when each row is there.
func (c *Controllers) note(rows []Row, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	since := map[string]time.Time{}
	for _, r := range rows {
		if since[r.id()] = now; !c.since[r.id()].IsZero() {
			since[r.id()] = c.since[r.id()]
		} else if r.Class == Must && !r.isProfile() && !r.follows(profilesIn(rows)) {
			c.Log.Warn("controllers differ in a flag that must agree", "program", r.Program, "flag", r.Key, "values", r.text())
		}
	}
	c.rows, c.since = rows, since
}

// text lists the values: c0 10.32.0.0/24, c1 10.33.0.0/24.
func (r Row) text() string {
	var all []string
	for name, v := range r.Values {
		all = append(all, name+" "+cmp.Or(v, "the default"))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// Findings reports each flag that must agree and does not. It never blocks.
func (c *Controllers) Findings() (all []status.Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	profiles := profilesIn(c.rows)
	for _, r := range c.rows {
		switch {
		case r.Class != Must || r.follows(profiles):
		case r.isProfile():
			all = append(all, status.Finding{
				Health: status.Degraded, Kind: Kind, Since: c.since[r.id()], Text: r.profileText(),
				Do: "set the same profile in the configuration file of each, and restart them one after the other; kthwd config diff shows the rest",
			})
		default:
			all = append(all, status.Finding{
				Health: status.Degraded, Kind: Kind, Since: c.since[r.id()],
				Text: fmt.Sprintf("the controllers differ in --%s of %s: %s", r.Key, r.Program, r.text()),
				Do:   "kthwd config diff",
			})
		}
	}
	return all
}

// Diff compares anew, and returns the rows.
func (c *Controllers) Diff(ctx context.Context) ([]Row, error) {
	if c.Member.Running() == nil {
		return nil, errors.New("etcd has not started yet")
	}
	if err := c.round(ctx); err != nil {
		return nil, fmt.Errorf("etcd does not answer: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.rows), nil
}

var driftDesc = prometheus.NewDesc("kthwd_config_drift", "Flags that differ between the controllers of the cluster, by what that means.", []string{"class"}, nil)

// Describe implements prometheus.Collector.
func (c *Controllers) Describe(ch chan<- *prometheus.Desc) { ch <- driftDesc }

// Collect implements prometheus.Collector.
func (c *Controllers) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := map[Class]int{}
	for _, r := range c.rows {
		count[r.Class]++
	}
	for class, label := range map[Class]string{Must: "must_agree", Should: "should_agree"} {
		ch <- prometheus.MustNewConstMetric(driftDesc, prometheus.GaugeValue, float64(count[class]), label)
	}
}
