package encryption

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/encryption/values"
	"kthwd/appliance/stages"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// Path is the path of the verbs on the control socket.
const Path = "/encryption"

// The verbs of Request.
const (
	VerbStatus = "status"
	VerbRotate = "rotate"
	VerbResume = "resume"
	VerbAbort  = "abort"
)

// Request is what a kthwd encryption verb asks for.
type Request struct {
	Verb     string `json:"verb"`
	Plan     bool   `json:"plan,omitempty"`     // change nothing
	Provider string `json:"provider,omitempty"` // of the new key; empty for the kind of the old one
	Name     string `json:"name,omitempty"`     // of a key server
	Endpoint string `json:"endpoint,omitempty"` // of a key server: the socket of its plugin on each controller
	Brief    bool   `json:"brief,omitempty"`    // of status: leave out the look at etcd's values
}

// Report is the answer.
type Report struct {
	File        string         `json:"file"`
	Rotation    *State         `json:"rotation,omitempty"` // nil before the first one
	Running     bool           `json:"running"`            // it has not ended
	Holder      string         `json:"holder,omitempty"`   // the controller that carries it on; empty if it has stopped
	Stopped     string         `json:"stopped,omitempty"`  // why it does not go on, if this controller knows
	Hint        string         `json:"hint,omitempty"`
	Progress    progress       `json:"progress"`
	Controllers []Controller   `json:"controllers,omitempty"`
	Stored      *values.Stored `json:"stored,omitempty"`
	Steps       []string       `json:"steps,omitempty"` // of a plan
}

// Private returns the handler of the verbs, for the unix socket.
func (r *Rotation) Private() map[string]http.HandlerFunc {
	return stages.Verbs(Path, r.do)
}

func (r *Rotation) do(ctx context.Context, in Request) (out Report, err error) {
	client, err := r.client()
	if err != nil {
		return out, err
	}
	defer client.Close()
	switch in.Verb {
	case VerbStatus:
		return r.report(ctx, client, in.Brief)
	case VerbRotate:
		return r.rotate(ctx, client, in)
	case VerbResume:
		err = r.act(ctx, r.resume)
	case VerbAbort:
		if err = r.mayAbort(ctx, client); err == nil {
			err = errors.Join(r.runner.Halt(ctx), r.act(ctx, r.abort))
		}
	default:
		err = fmt.Errorf("unknown verb %q", in.Verb)
	}
	if err != nil {
		return out, err
	}
	return r.report(ctx, client, true)
}

// report says where the rotation is, and what each controller uses.
func (r *Rotation) report(ctx context.Context, client *clientv3.Client, brief bool) (out Report, err error) {
	if err := r.configured(); err != nil {
		return out, err
	}
	out.File = r.file()
	s, err := readState(ctx, r.cfg.Layout, client)
	if err != nil {
		return out, err
	}
	if s.ID != "" {
		out.Rotation, out.Running = &s, s.running()
	}
	var left *stages.Stop
	if out.Holder, left, err = kind.Acts(ctx, client); err != nil {
		return out, err
	}
	r.mu.Lock()
	out.Progress = r.progress
	r.mu.Unlock()
	if stopped := r.runner.Stopped(); stopped != nil && out.Running {
		out.Stopped = stopped.Error()
		out.Hint, _ = advice.Of(stopped)
	}
	if brief {
		return out, nil
	}
	if left != nil && out.Stopped == "" && out.Running {
		out.Stopped, out.Hint = left.By+": "+left.Why, left.Hint
	}
	if out.Controllers, err = r.ask(ctx, request{}, askTime); err != nil {
		return out, err
	}
	data, err := os.ReadFile(r.file())
	if err != nil {
		return out, err
	}
	stored, err := r.stored(ctx, client, data)
	if stored.Keys != nil {
		out.Stored = &stored
	}
	return out, err
}

// rotate begins a rotation, or says what it would do.
func (r *Rotation) rotate(ctx context.Context, client *clientv3.Client, q Request) (out Report, err error) {
	p, stored, err := r.prepare(ctx, client, q)
	if err != nil {
		return out, err
	}
	if q.Plan {
		out.File, out.Stored, out.Steps = r.file(), &stored, steps(p, stored, r.cfg.Settle)
		return out, nil
	}
	err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, []byte, error) {
		data, err := keyfile.In(p.data, keyfile.FormRead, p.state.New, p.entry)
		if err != nil {
			return State{}, nil, err
		}
		p.state.Stage, p.state.Began = StageRead, time.Now().UTC()
		return p.state, data, r.record(ctx, client, h, &p.state, data)
	})
	if err != nil {
		return out, err
	}
	return r.report(ctx, client, true)
}

// steps is a plan for people.
func steps(p *plan, stored values.Stored, settle time.Duration) []string {
	old := strings.Join(p.state.Old, ", ")
	return []string{
		fmt.Sprintf("read     every controller gets %s as second key, and its API server uses that", p.state.New),
		fmt.Sprintf("write    every controller writes with %s, and reads %s", p.state.New, old),
		fmt.Sprintf("rewrite  %d values are written anew, until two looks %s apart find none of %s", stored.Values(), settle, old),
		fmt.Sprintf("drop     every controller forgets %s", old),
	}
}

// resume goes on with the stage at which a rotation has stopped.
func (r *Rotation) resume(ctx context.Context, client *clientv3.Client, _ *stages.Hold) (State, []byte, error) {
	s, err := r.unfinished(ctx, client)
	return s, nil, err
}

// unfinished is the rotation that is under way.
func (r *Rotation) unfinished(ctx context.Context, client *clientv3.Client) (State, error) {
	s, err := readState(ctx, r.cfg.Layout, client)
	if err == nil && !s.running() {
		err = advice.With(errors.New("no rotation of the encryption key is under way"), "kthwd encryption rotate begins one")
	}
	return s, err
}

// mayAbort refuses an abort that comes too late, or twice.
func (r *Rotation) mayAbort(ctx context.Context, client *clientv3.Client) error {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return err
	case s.Back:
		return advice.With(errors.New("the rotation is being aborted already"), "kthwd encryption resume goes on with that")
	case s.Stage == StageDrop:
		return advice.With(errors.New("the rotation can no longer be aborted: no value needs the old key, and controllers are forgetting it"), "kthwd encryption resume ends it")
	}
	return nil
}

// abort turns a rotation round: what the new key has written is written with the old one
// again, and the new key is dropped.
func (r *Rotation) abort(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, []byte, error) {
	if err := r.mayAbort(ctx, client); err != nil {
		return State{}, nil, err
	}
	s, err := r.unfinished(ctx, client)
	if err != nil {
		return s, nil, err
	}
	s.Back = true
	if s.Stage == StageRead {
		s.Stage = StageDrop // nothing has been written with the new key
	} else {
		s.Stage = StageWrite
	}
	data, err := r.enter(ctx, client, h, &s)
	return s, data, err
}

const kindRotation = "encryption_rotation"

// Run carries rotations on, and follows those of other controllers, until ctx ends.
func (r *Rotation) Run(ctx context.Context) { r.runner.Run(ctx, r.follow) }

func (r *Rotation) follow(ctx context.Context, client *clientv3.Client) error {
	s, err := readState(ctx, r.cfg.Layout, client, clientv3.WithSerializable())
	var holder string
	if err == nil && s.running() {
		holder, err = r.runner.Follow(ctx, client)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.seen, r.holder = s, holder
	r.mu.Unlock()
	if kept, err := os.Lstat(r.next()); err == nil && r.file() != "" && !s.running() {
		r.tidy(ctx, client, kept)
	}
	return nil
}

// tidy removes the file that a controller keeps for a rotation which another one has ended, or
// which has never begun: it has the old key.
func (r *Rotation) tidy(ctx context.Context, client *clientv3.Client, kept fs.FileInfo) {
	// This one asks the quorum, which may know more than this member.
	if s, err := readState(ctx, r.cfg.Layout, client); err != nil || s.running() {
		return
	}
	r.runner.ForgetKept(r.next(), kept)
}

// Findings tells of a rotation that is under way, or has stopped.
func (r *Rotation) Findings() []status.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen
	if !s.running() {
		return nil
	}
	where := fmt.Sprintf("encryption key %s: stage %d of %d, %s", s, s.Stage.Number(), Of, s.Stage)
	f := status.Finding{Health: status.Healthy, Kind: kindRotation, Text: where + ", by " + text.Line(r.holder), Do: r.verb("status"), Since: s.Since}
	if r.holder == "" && !r.runner.Acting() {
		f.Health, f.Text, f.Do = status.Degraded, where+", has stopped", r.verb("resume")
		if why := r.runner.Why(); why != "" {
			f.Text += ": " + why
		}
	}
	return []status.Finding{f}
}

func (r *Rotation) verb(name string) string {
	return "kthwd encryption " + name + " --data-dir=" + text.ShellWord(r.cfg.Layout.Dir)
}

var (
	stageMetric = prometheus.NewDesc("kthwd_encryption_rotation_stage", "Stage of the rotation of the encryption key, as this controller knows it: 0 none, 1 read, 2 write, 3 rewrite, 4 drop.", nil, nil)
	totalMetric = prometheus.NewDesc("kthwd_encryption_rewritten_total", "Values in etcd that this controller has written anew with another encryption key.", nil, nil)
	allMetrics  = kind.Metrics()
)

// Describe implements prometheus.Collector.
func (r *Rotation) Describe(ch chan<- *prometheus.Desc) {
	allMetrics.Describe(ch)
	ch <- stageMetric
	ch <- totalMetric
}

// Collect implements prometheus.Collector.
func (r *Rotation) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, since := 0, time.Time{}
	if r.seen.running() {
		n, since = r.seen.Stage.Number(), r.seen.Since
	}
	allMetrics.Collect(ch, since, len(r.runner.Late()))
	ch <- prometheus.MustNewConstMetric(stageMetric, prometheus.GaugeValue, float64(n))
	ch <- prometheus.MustNewConstMetric(totalMetric, prometheus.CounterValue, r.total)
}
