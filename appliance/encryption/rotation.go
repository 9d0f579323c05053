package encryption

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.yaml.in/yaml/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/encryption/values"
	"kthwd/appliance/etcd"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

const (
	attempts = 20 // looks that find values of the old key, before the rotation stops
	again    = time.Second
)

// Config describes a Rotation.
type Config struct {
	Name   string // this controller's
	Layout pki.Layout
	Etcd   *etcd.Member
	Gate   *gate.Gate
	Others *others.Others
	Log    *slog.Logger

	// Settle is longer than a request to an API server may take: one that began before
	// all controllers wrote with the new key may write with the old one as late.
	Settle time.Duration

	// Share tells the cluster the keys of the file as it is: besides those that it knows,
	// or alone, and it forgets the others.
	Share func(ctx context.Context, client *clientv3.Client, path string, alone bool) error
}

// Rotation rotates the encryption key. Make one with New. Its methods may be called from any
// goroutine.
type Rotation struct {
	cfg  Config
	gate *gate.Gate

	accepting sync.Mutex // one file of another controller at a time

	runner *stages.Runner

	mu       sync.Mutex
	progress progress
	seen     State // as Run has last read it
	holder   string
	total    float64 // values rewritten by this process
}

// progress is that of a rewrite here.
type progress struct {
	Began     time.Time `json:"began,omitzero"`
	Rewritten int       `json:"rewritten"`
	Proof     int       `json:"proof,omitempty"` // looks that have found no value of the old key
}

// New makes the Rotation of a controller.
func New(c Config) *Rotation {
	r := &Rotation{cfg: c, gate: c.Gate}
	r.runner = stages.NewRunner(stages.RunnerConfig{Kind: kind, Name: c.Name, Client: r.client, Log: c.Log})
	return r
}

func (r *Rotation) file() string { return r.gate.File() }

func (r *Rotation) client() (*clientv3.Client, error) {
	server := r.cfg.Etcd.Running()
	if server == nil {
		return nil, advice.With(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
	}
	return v3client.New(server.Server), nil
}

// plan is what begin has found out.
type plan struct {
	state State
	data  []byte     // the file in use
	entry *yaml.Node // the new key
}

// prepare checks everything that would stop a rotation, and changes nothing.
func (r *Rotation) prepare(ctx context.Context, client *clientv3.Client, q Request) (*plan, values.Stored, error) {
	if err := r.configured(); err != nil {
		return nil, values.Stored{}, err
	}
	was, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case err != nil:
		return nil, values.Stored{}, err
	case was.running():
		return nil, values.Stored{}, advice.With(fmt.Errorf("a rotation has not ended: %s, stage %s since %s", was, was.Stage, was.Since.UTC().Format(time.RFC3339)),
			"kthwd encryption status shows it; kthwd encryption resume ends it, kthwd encryption abort takes it back")
	}
	data, err := os.ReadFile(r.file())
	if err != nil {
		return nil, values.Stored{}, err
	}
	f, err := keyfile.Parse(data)
	if err == nil {
		err = f.Rotatable()
	}
	if err != nil {
		return nil, values.Stored{}, r.ofFile(err)
	}
	if err := r.same(ctx, keyfile.Hash(data)); err != nil {
		return nil, values.Stored{}, err
	}
	stored, err := r.stored(ctx, client, data)
	if err != nil {
		return nil, stored, err
	}
	var names []string
	for key := range stored.Keys {
		names = append(names, key[strings.LastIndex(key, " ")+1:])
	}
	p := &plan{data: data, state: State{ID: rand.Text(), Files: []string{keyfile.Hash(data)}, revision: was.revision}}
	if p.state.New, p.entry, err = newOf(f, q, names, was.New.Name); err != nil {
		return nil, stored, err
	}
	for _, w := range f.Writers() {
		p.state.Old = append(p.state.Old, w.String())
	}
	if err := r.tryAll(ctx, p); err != nil {
		return nil, stored, err
	}
	return p, stored, r.tryServer(ctx, p)
}

// newOf makes the new key of a rotation: one of kthwd's, or a key server's. stored are the names of
// the keys in etcd, and last is that of the rotation before.
func newOf(f *keyfile.File, q Request, stored []string, last string) (keyfile.Provider, *yaml.Node, error) {
	kind := cmp.Or(q.Provider, f.Writers()[0].Kind)
	given := q.Name != "" || q.Endpoint != ""
	switch {
	case kind == keyfile.KindKMS && (q.Name == "" || q.Endpoint == ""):
		return keyfile.Provider{}, nil, advice.With(advice.Usage(errors.New("a key server needs a name and the socket of its plugin")),
			"--provider=kms --kms-name=vault --kms-endpoint=unix:///run/kms.sock; the same on each controller")
	case kind == keyfile.KindKMS:
		used := slices.Clone(stored)
		for _, p := range f.All() {
			used = append(used, p.Name)
		}
		if slices.Contains(used, q.Name) {
			return keyfile.Provider{}, nil, advice.With(advice.Usage(fmt.Errorf("the name %q is in use: values of the old key would look like new ones", q.Name)), "choose another --kms-name")
		}
		p := keyfile.Provider{Kind: keyfile.KindKMS, Name: q.Name, Version: keyfile.VersionKMS}
		entry, err := keyfile.NewServer(p, q.Endpoint)
		return p, entry, err
	case !slices.Contains(keyfile.Kinds, kind):
		return keyfile.Provider{}, nil, advice.With(advice.Usage(fmt.Errorf("kthwd makes no keys for the provider %q", kind)), "providers: "+strings.Join(append(slices.Clone(keyfile.Kinds), keyfile.KindKMS), ", "))
	case given:
		return keyfile.Provider{}, nil, advice.Usage(fmt.Errorf("--kms-name and --kms-endpoint are for --provider=%s", keyfile.KindKMS))
	}
	p := f.NewProvider(kind, append(stored, last))
	entry, err := keyfile.NewKey(p)
	return p, entry, err
}

// tryServer has every controller ask the key server of the new key, before anything changes.
func (r *Rotation) tryServer(ctx context.Context, p *plan) error {
	if p.state.New.Kind != keyfile.KindKMS {
		return nil
	}
	data, err := keyfile.In(p.data, keyfile.FormRead, p.state.New, p.entry)
	if err != nil {
		return err
	}
	all, err := r.ask(ctx, request{Trial: data}, askTime+keyfile.AnswerTime)
	if err != nil {
		return err
	}
	return stages.Complaints(all)
}

// tryAll reads each file of the rotation as the API server would.
func (r *Rotation) tryAll(ctx context.Context, p *plan) error {
	life, end := context.WithCancel(ctx)
	defer end()
	for _, want := range []keyfile.Form{keyfile.FormRead, keyfile.FormWrite, keyfile.FormNew} {
		next, err := keyfile.In(p.data, want, p.state.New, p.entry)
		if err == nil {
			_, err = keyfile.Load(life, next, "")
		}
		if err != nil {
			return r.ofFile(err)
		}
	}
	return nil
}

// ofFile names the file in an error.
func (r *Rotation) ofFile(err error) error {
	hint, _ := advice.Of(err)
	return advice.With(fmt.Errorf("%s: %w", r.file(), err), cmp.Or(hint, "correct it first"))
}

// same refuses controllers that use other files than this one, or could not replace theirs.
func (r *Rotation) same(ctx context.Context, hash string) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err != nil {
		return err
	}
	if err := stages.Complaints(all); err != nil {
		return err
	}
	name := filepath.Base(r.file())
	for _, c := range all {
		switch {
		case c.File != c.InUse:
			return advice.With(fmt.Errorf("%s: %s is not the file that its API server uses", c.Name, name), "put the file from before back, or restart kthwd on "+c.Name)
		case c.File != hash:
			return advice.With(fmt.Errorf("%s has another %s than %s", c.Name, name, r.cfg.Name), "copy the file from the controller whose file is right; both must have the same bytes")
		}
	}
	return nil
}

// stored looks at etcd with a file. What that cannot open is an error.
func (r *Rotation) stored(ctx context.Context, client *clientv3.Client, data []byte) (values.Stored, error) {
	life, end := context.WithCancel(ctx)
	defer end()
	c, err := keyfile.Load(life, data, "")
	if err != nil {
		return values.Stored{}, r.ofFile(err)
	}
	if err := r.gate.Answers(ctx, c); err != nil { // else values would seem lost
		return values.Stored{}, err
	}
	read, err := r.gate.Reader(data, c)
	if err != nil {
		return values.Stored{}, r.ofFile(err)
	}
	s, bad, lost, err := read.Look(ctx, client, true)
	if err == nil && lost > 0 {
		err = r.gate.Unreadable(read, bad, lost)
	}
	return s, err
}

// act carries the rotation on in the background. begin returns the state with which it
// starts; an error of it, or of the right to act, is returned, and nothing has changed then.
func (r *Rotation) act(ctx context.Context, begin func(context.Context, *clientv3.Client, *stages.Hold) (State, []byte, error)) error {
	return r.runner.Act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (stages.Work, error) {
		s, data, err := begin(ctx, client, h)
		if err != nil {
			return stages.Work{}, err
		}
		r.mu.Lock()
		r.progress = progress{}
		r.mu.Unlock()
		return stages.Work{What: s.String(), Stage: func(ctx context.Context, client *clientv3.Client, h *stages.Hold) error {
			return r.carryOn(ctx, client, h, s, data)
		}}, nil
	})
}

// carryOn goes through the stages from that of s. data is the file of the stage if it is
// known already.
func (r *Rotation) carryOn(ctx context.Context, client *clientv3.Client, h *stages.Hold, s State, data []byte) (err error) {
	for {
		r.cfg.Log.Info("rotation of the encryption key", "stage", string(s.Stage), "rotation", s.String())
		switch s.Stage {
		case StageRewrite:
			err = r.rewriteAll(ctx, client, h, s)
		default:
			if data == nil {
				data, err = r.enter(ctx, client, h, &s)
			}
			if err == nil {
				err = r.spread(ctx, client, s, data)
			}
			data = nil
		}
		if errors.Is(err, errNeeded) {
			// No controller has forgotten the key yet, so the stage before can come again.
			r.cfg.Log.Warn("values are written anew once more", "err", err)
			s.Stage, s.Files = StageWrite, s.Files[:len(s.Files)-1]
		} else if err != nil {
			return err
		}
		if s.Stage = order[(s.Stage.Number())%Of]; s.Stage == StageRead {
			break // the stage was the last one
		}
		if s.Stage == StageRewrite {
			s.Since, s.By = time.Now().UTC(), r.cfg.Name
			if err := s.save(ctx, r.cfg.Layout, client, h); err != nil {
				return err
			}
		}
	}
	s.Stage, s.Since = StageDone, time.Now().UTC()
	if err := s.save(ctx, r.cfg.Layout, client, h); err != nil {
		return err
	}
	r.cfg.Log.Info("rotation of the encryption key has ended", "rotation", s.String())
	return stages.ForgetKey(r.next())
}

// formOf is what the file of a stage looks like.
func formOf(s State) keyfile.Form {
	switch {
	case s.Back && s.Stage == StageDrop:
		return keyfile.FormWithout
	case s.Back || s.Stage == StageRead:
		return keyfile.FormRead
	case s.Stage == StageWrite:
		return keyfile.FormWrite
	}
	return keyfile.FormNew
}

// enter makes the file of the stage, keeps it here, and records its hash.
func (r *Rotation) enter(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *State) ([]byte, error) {
	here, err := os.ReadFile(r.file())
	if err != nil {
		return nil, err
	}
	if !slices.Contains(s.Files, keyfile.Hash(here)) {
		return nil, r.edited(r.cfg.Name)
	}
	data, err := keyfile.In(here, formOf(*s), s.New, nil)
	if errors.Is(err, keyfile.ErrNoKey) {
		kept, failed := os.ReadFile(r.next())
		if failed != nil {
			return nil, advice.With(fmt.Errorf("the new key, %s, is not on this controller: %s has begun the rotation", s.New, s.By),
				"run kthwd encryption resume there; if that controller is lost, kthwd encryption abort takes the rotation back")
		}
		data, err = keyfile.In(kept, formOf(*s), s.New, nil)
	}
	if err != nil {
		return nil, r.ofFile(err)
	}
	return data, r.record(ctx, client, h, s, data)
}

// record keeps the file of the stage beside the one in use, and then its hash in etcd.
func (r *Rotation) record(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *State, data []byte) error {
	if err := durable.Write(r.next(), data, 0o600); err != nil {
		return advice.With(fmt.Errorf("keep the new key: %w", err), "make the directory writable for kthwd's user")
	}
	hash := keyfile.Hash(data)
	s.Files = append(slices.DeleteFunc(s.Files, func(f string) bool { return f == hash }), hash)
	s.Since, s.By = time.Now().UTC(), r.cfg.Name
	return s.save(ctx, r.cfg.Layout, client, h)
}

// spread gives every controller the file of the stage, and returns when the API server of each uses it.
func (r *Rotation) spread(ctx context.Context, client *clientv3.Client, s State, data []byte) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err != nil {
		return err
	}
	if err := stages.Complaints(all); err != nil {
		return err
	}
	for _, c := range all {
		switch {
		case !slices.Contains(s.Files, c.File):
			return r.edited(c.Name)
		case s.missedBy(c):
			return s.lacksNew(filepath.Base(r.file())+" on "+c.Name, "restart kthwd on "+c.Name+"; then kthwd encryption resume")
		}
	}
	if s.Stage == StageDrop {
		// A controller that starts from now on has the new file alone, or the one from before.
		if err := r.cfg.Share(ctx, client, r.file(), false); err != nil {
			return err
		}
		err := r.ready(ctx, client, s)
		if errors.Is(err, errNeeded) && slices.ContainsFunc(all, func(c Controller) bool { return c.File == s.hash() }) {
			return advice.With(errors.New(err.Error()), fmt.Sprintf("copy %s to the other controllers and restart kthwd there; then kthwd encryption resume", r.file()))
		}
		if err != nil {
			return err
		}
	}
	if all, err = r.ask(ctx, request{ID: s.ID, Data: data}, gate.ProofTime); err != nil {
		return err
	}
	if err := stages.Complaints(all); err != nil {
		return err
	}
	for _, c := range all {
		if c.File != s.hash() || c.InUse != s.hash() {
			return fmt.Errorf("%s: its API server does not use the file of the stage", c.Name)
		}
	}
	if s.Stage == StageDrop {
		return r.cfg.Share(ctx, client, r.file(), true)
	}
	return nil
}

// ready looks once more before a key is dropped.
func (r *Rotation) ready(ctx context.Context, client *clientv3.Client, s State) error {
	data, err := os.ReadFile(r.file())
	if err != nil {
		return err
	}
	stored, err := r.stored(ctx, client, data)
	if err == nil && !clean(s, stored) {
		err = fmt.Errorf("%w: %s", errNeeded, stored)
	}
	return err
}

// errNeeded means that a value has appeared since the rewrite: from a backup, or from something
// else that writes to etcd.
var errNeeded = errors.New("etcd still has values of the key that the last stage drops")

// clean reports whether no value needs the key that the rotation drops.
func clean(s State, stored values.Stored) bool {
	if s.Back {
		return stored.Keys[values.KeyName(s.New.Prefix())] == 0
	}
	return stored.Plain == 0 && stored.Keys[values.KeyName(s.New.Prefix())] == stored.Values()
}

// rewriteAll rewrites what the key to be dropped has written, until two looks further apart
// than the longest request find nothing of it.
func (r *Rotation) rewriteAll(ctx context.Context, client *clientv3.Client, h *stages.Hold, s State) error {
	data, err := os.ReadFile(r.file())
	if err != nil {
		return err
	}
	if keyfile.Hash(data) != s.hash() {
		return r.edited(r.cfg.Name)
	}
	life, end := context.WithCancel(ctx)
	defer end()
	c, err := keyfile.Load(life, data, "")
	if err != nil {
		return r.ofFile(err)
	}
	if err := r.gate.Answers(ctx, c); err != nil {
		return err
	}
	read, err := r.gate.Reader(data, c)
	if err != nil {
		return r.ofFile(err)
	}
	w := &values.Rewriter{Reader: read, Client: client, Done: r.count, Due: values.DueForward(read, s.New), Held: []clientv3.Cmp{h.Valid()}}
	if s.Back {
		w.Due = values.DueBack(s.New)
	}
	r.note(func(p *progress) { p.Began = time.Now() })
	return r.repeat(ctx, func() (proven bool, err error) {
		if err := w.Run(ctx); err != nil {
			return false, err
		}
		return r.prove(ctx, client, read, s)
	})
}

// repeat calls rewrite until it proves that no value is left, also while etcd does not answer:
// an election is no reason to stop.
func (r *Rotation) repeat(ctx context.Context, rewrite func() (proven bool, err error)) (err error) {
	for range attempts {
		var proven bool
		if proven, err = rewrite(); proven || err != nil && !transient(ctx, err) {
			return err
		}
		if err != nil {
			r.cfg.Log.Info("values are written anew once more", "err", err)
			if err := sleep(ctx, again); err != nil {
				return err
			}
		}
	}
	return cmp.Or(err, errors.New("values of the old key appear again and again: something writes to etcd besides the API servers that were asked"))
}

// transient reports whether an error may be over in a second.
func transient(ctx context.Context, err error) bool {
	_, silent := errors.AsType[*values.NoAnswer](err)
	return silent && ctx.Err() == nil
}

// prove looks twice.
func (r *Rotation) prove(ctx context.Context, client *clientv3.Client, read values.Reader, s State) (bool, error) {
	pause := time.Duration(0)
	for n := range 2 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, ctx.Err()
		}
		stored, _, _, err := read.Look(ctx, client, false)
		if err != nil {
			return false, err
		}
		if !clean(s, stored) {
			r.note(func(p *progress) { p.Proof = 0 })
			return false, sleep(ctx, again)
		}
		r.note(func(p *progress) { p.Proof = n + 1 })
		pause = r.cfg.Settle
	}
	return true, nil
}

func (r *Rotation) note(change func(*progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.progress)
}

func (r *Rotation) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.Rewritten += n
	r.total += float64(n)
}

// sleep waits, and returns the error of ctx if that ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return ctx.Err()
}
