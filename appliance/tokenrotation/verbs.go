package tokenrotation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// Path is the path of the verbs on the control socket.
const Path = "/service-account"

// The verbs of Request.
const (
	VerbStatus = "status"
	VerbRotate = "rotate"
	VerbResume = "resume"
	VerbDrop   = "drop"
	VerbAbort  = "abort"
)

// Request is what a kthwd pki service-account verb asks for.
type Request struct {
	Verb  string        `json:"verb"`
	Plan  bool          `json:"plan,omitempty"`  // of rotate: change nothing
	Wait  time.Duration `json:"wait,omitempty"`  // of rotate: how long the new key is published before it signs
	Force bool          `json:"force,omitempty"` // of drop: also while somebody uses the old key
	Brief bool          `json:"brief,omitempty"` // of status: ask no controller
}

// Report is the answer.
type Report struct {
	Rotation    *State       `json:"rotation,omitempty"` // nil before the first one
	Running     bool         `json:"running"`            // it has not ended
	Waits       bool         `json:"waits,omitempty"`    // for a person to drop the old key
	Holder      string       `json:"holder,omitempty"`   // the controller that carries it on; empty if none does
	Stopped     string       `json:"stopped,omitempty"`  // why it does not go on, if this controller knows
	Hint        string       `json:"hint,omitempty"`
	Expired     time.Time    `json:"expired,omitzero"` // when no token that was asked for with the old key is valid any longer
	Controllers []Controller `json:"controllers,omitempty"`
	Steps       []string     `json:"steps,omitempty"` // of a plan
}

// Halted reports whether the rotation should go on and does not.
func (r Report) Halted() bool { return r.Running && !r.Waits && r.Holder == "" }

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
		err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, _ *stages.Hold) (State, error) {
			return r.unfinished(ctx, client)
		})
	case VerbDrop:
		err = r.beginDrop(ctx, client, in.Force)
	case VerbAbort:
		if _, err = r.mayAbort(ctx, client); err == nil {
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

// report says where the rotation is, which keys each controller uses, and which accounts still use the old one.
func (r *Rotation) report(ctx context.Context, client *clientv3.Client, brief bool) (out Report, err error) {
	s, err := readState(ctx, r.cfg.Layout, client)
	if err != nil {
		return out, err
	}
	if s.ID != "" {
		out.Rotation, out.Running, out.Waits = &s, s.Running(), s.waits()
	}
	if s.waits() && r.cfg.Life > 0 {
		out.Expired = s.Since.Add(r.cfg.Life)
	}
	var left *stages.Stop
	if out.Holder, left, err = kind.Acts(ctx, client); err != nil {
		return out, err
	}
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
	in := request{}
	if out.Running {
		in.Watch = s.Old
	}
	out.Controllers, err = r.ask(ctx, in, askTime)
	return out, err
}

// rotate begins a rotation, or says what it would do.
func (r *Rotation) rotate(ctx context.Context, client *clientv3.Client, q Request) (out Report, err error) {
	s, err := r.prepare(ctx, client, q.Wait)
	if err != nil {
		return out, err
	}
	if q.Plan {
		old := Short(s.Old)
		out.Steps = []string{
			"publish  every controller gets a new key, accepts its tokens and shows it at /openid/v1/jwks",
			fmt.Sprintf("sign     %s later every controller signs with it, and kube-controller-manager begins another term", q.Wait),
			fmt.Sprintf("watch    tokens of %s are accepted, and the accounts that use one are named", old),
			fmt.Sprintf("drop     after kthwd pki service-account drop every controller forgets %s", old),
		}
		return out, nil
	}
	key, id, err := pki.NewTokenKey()
	if err != nil {
		return out, err
	}
	s.New = id
	err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
		if err := stages.KeepKey(r.next(), key); err != nil { // before the state: without it nobody could go on
			return s, err
		}
		return s, r.enter(ctx, client, h, &s, StagePublish)
	})
	if err != nil {
		return out, err
	}
	return r.report(ctx, client, true)
}

// unfinished is the rotation that is under way.
func (r *Rotation) unfinished(ctx context.Context, client *clientv3.Client) (State, error) {
	s, err := readState(ctx, r.cfg.Layout, client)
	if err == nil && !s.Running() {
		err = advice.With(errors.New("no rotation of the service account key is under way"), "kthwd pki service-account rotate begins one")
	}
	return s, err
}

// beginDrop lets the last stage begin, if nobody needs the old key or a person says that they may
// lose it.
func (r *Rotation) beginDrop(ctx context.Context, client *clientv3.Client, force bool) error {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return err
	case !s.waits():
		return advice.With(fmt.Errorf("the old key cannot be dropped now: the rotation is in the stage %s", s.Stage), nextOf(s))
	}
	all, err := r.ask(ctx, request{Check: true, Watch: s.Old}, askTime)
	if err == nil {
		err = notConfirmed(s, all)
	}
	if err == nil && !force {
		err = stages.TooEarly(mayDrop(s, all, time.Now()))
	}
	if err != nil {
		return err
	}
	return r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
		now, err := r.unfinished(ctx, client)
		if err != nil || now.revision != s.revision {
			return now, errors.Join(err, kind.Lost())
		}
		return now, r.enter(ctx, client, h, &now, StageDrop)
	})
}

// mayAbort refuses an abort that comes too late, or twice.
func (r *Rotation) mayAbort(ctx context.Context, client *clientv3.Client) (State, error) {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return s, err
	case s.Back:
		return s, advice.With(errors.New("the rotation is being aborted already"), "kthwd pki service-account resume goes on with that")
	case s.Stage != StagePublish:
		return s, advice.With(errors.New("the rotation can no longer be aborted: tokens are signed with the new key"), "end it with kthwd pki service-account drop, and rotate again if the new key must go")
	}
	return s, nil
}

// abort turns a rotation round: every controller forgets the new key, with which nobody has signed.
func (r *Rotation) abort(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
	s, err := r.mayAbort(ctx, client)
	if err != nil {
		return s, err
	}
	s.Back = true
	return s, r.enter(ctx, client, h, &s, StageDrop)
}

const kindRotation = "service_account_rotation"

// Run carries rotations on, and follows those of other controllers, until ctx ends.
func (r *Rotation) Run(ctx context.Context) { r.runner.Run(ctx, r.follow) }

func (r *Rotation) follow(ctx context.Context, client *clientv3.Client) error {
	s, err := readState(ctx, r.cfg.Layout, client, clientv3.WithSerializable())
	var holder string
	if err == nil && s.Running() {
		holder, err = r.runner.Follow(ctx, client)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.seen, r.holder = s, holder
	r.mu.Unlock()
	watched := ""
	if s.Running() && !s.Back && s.Stage != StagePublish {
		watched = s.Old
	}
	r.cfg.Tokens.WatchUse(watched)
	if err := r.keepUse(ctx, client, watched, time.Now()); err != nil {
		r.cfg.Log.Debug("the accounts that use the old key are not recorded", "err", err)
	}
	if kept, err := os.Lstat(r.next()); err == nil && !(s.Running() && s.Stage == StagePublish) {
		r.tidy(ctx, client, kept)
	}
	return nil
}

// Findings tells of a rotation that is under way, waits or has stopped.
func (r *Rotation) Findings() []status.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen
	if !s.Running() {
		return nil
	}
	where := fmt.Sprintf("service account key %s: stage %d of %d, %s", s, s.Stage.Number(), Of, s.Stage)
	f := status.Finding{Health: status.Healthy, Kind: kindRotation, Text: where, Do: r.verb(VerbStatus), Since: s.Since}
	switch use := r.cfg.Tokens.UseOf(s.Old); {
	case s.waits() && use != nil && use.Count > 0:
		f.Text += fmt.Sprintf(": %d tokens of the old key were accepted here, the newest of %s", use.Count, use.Newest())
	case s.waits():
		f.Text += ": no token of the old key was seen here yet"
	case r.holder == "" && !r.runner.Acting():
		f.Health, f.Do = status.Degraded, r.verb(VerbResume)
		f.Text += ", has stopped"
		if why := r.runner.Why(); why != "" {
			f.Text += ": " + why
		}
	default:
		f.Text += ", by " + text.Line(r.holder)
	}
	return []status.Finding{f}
}

func (r *Rotation) verb(name string) string {
	return "kthwd pki service-account " + name + " --data-dir=" + text.ShellWord(r.cfg.Layout.Dir)
}

var (
	stageMetric = prometheus.NewDesc("kthwd_service_account_rotation_stage", "Stage of the rotation of the service account key, as this controller knows it: 0 none, 1 publish, 2 sign, 3 watch, 4 drop.", nil, nil)
	allMetrics  = kind.Metrics()
)

// Describe implements prometheus.Collector.
func (r *Rotation) Describe(ch chan<- *prometheus.Desc) { allMetrics.Describe(ch); ch <- stageMetric }

// Collect implements prometheus.Collector.
func (r *Rotation) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, since := 0, time.Time{}
	if r.seen.Running() {
		n, since = r.seen.Stage.Number(), r.seen.Since
	}
	allMetrics.Collect(ch, since, len(r.runner.Late()))
	ch <- prometheus.MustNewConstMetric(stageMetric, prometheus.GaugeValue, float64(n))
}
