package carotation

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
const Path = "/ca"

// The verbs of Request.
const (
	VerbStatus = "status"
	VerbRotate = "rotate"
	VerbSign   = "sign"
	VerbResume = "resume"
	VerbDrop   = "drop"
	VerbAbort  = "abort"
)

// Request is what a kthwd pki ca verb asks for.
type Request struct {
	Verb  string `json:"verb"`
	Plan  bool   `json:"plan,omitempty"`  // of rotate: change nothing
	Force bool   `json:"force,omitempty"` // of sign and drop: also where somebody is not ready for it
	Brief bool   `json:"brief,omitempty"` // of status: ask nobody
}

// Report is the answer.
type Report struct {
	Rotation    *State       `json:"rotation,omitempty"` // nil before the first one
	Running     bool         `json:"running"`            // it has not ended
	Waits       bool         `json:"waits,omitempty"`    // for a person
	Holder      string       `json:"holder,omitempty"`   // the controller that carries it on; empty if none does
	Stopped     string       `json:"stopped,omitempty"`  // why it does not go on, if this controller knows
	Hint        string       `json:"hint,omitempty"`
	Controllers []Controller `json:"controllers,omitempty"`
	Workers     []Worker     `json:"workers,omitempty"` // while ca.pem is distributed
	Steps       []string     `json:"steps,omitempty"`   // of a plan
}

// Halted reports whether the rotation should go on and does not.
func (r Report) Halted() bool { return r.Running && !r.Waits && r.Holder == "" }

// Private returns the handler of the verbs, for the unix socket.
func (r *Rotation) Private() map[string]http.HandlerFunc { return stages.Verbs(Path, r.do) }

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
	case VerbSign:
		err = r.goOn(ctx, client, StageDistribute, StageSign, func(s State) error {
			if in.Force {
				return nil
			}
			return r.maySign(ctx, s, time.Now())
		})
	case VerbDrop:
		err = r.goOn(ctx, client, StageWatch, StageDrop, func(s State) error {
			if in.Force {
				return nil
			}
			all, err := r.ask(ctx, request{Watch: s.Old}, askTime)
			if err == nil {
				err = stages.Complaints(all)
			}
			if err == nil {
				err = mayDrop(s, all, time.Now())
			}
			return err
		})
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

// report gives the stage of the rotation, the CAs of each controller, and the workers and users that
// are not ready for the next step.
func (r *Rotation) report(ctx context.Context, client *clientv3.Client, brief bool) (out Report, err error) {
	s, err := readState(ctx, r.cfg.Layout, client)
	if err != nil {
		return out, err
	}
	if s.ID != "" {
		out.Rotation, out.Running, out.Waits = &s, s.Running(), s.waits()
	}
	if out.Holder, err = kind.Holder(ctx, client); err != nil {
		return out, err
	}
	if stopped := r.runner.Stopped(); stopped != nil && out.Running {
		out.Stopped = stopped.Error()
		out.Hint, _ = advice.Of(stopped)
	}
	if brief {
		return out, nil
	}
	in := request{}
	if out.Running {
		in.Watch = s.Old
	}
	if out.Controllers, err = r.ask(ctx, in, askTime); err != nil || s.Stage != StageDistribute {
		return out, err
	}
	workers, failed := r.workers(ctx, s)
	if out.Workers = workers; failed != nil { // the controllers are shown all the same
		out.Workers = []Worker{{Node: "workers", Error: failed.Error()}}
	}
	return out, nil
}

// rotate begins a rotation, or says what it would do.
func (r *Rotation) rotate(ctx context.Context, client *clientv3.Client, q Request) (out Report, err error) {
	s, here, err := r.prepare(ctx, client)
	if err != nil {
		return out, err
	}
	if q.Plan {
		old := Short(s.Old)
		out.Steps = []string{
			"trust       every controller gets a new CA and its key, and accepts its certificates, too",
			"distribute  you copy ca.pem, which has both CAs then, to every worker, balancer and user",
			"sign        after kthwd pki ca sign every controller signs with the new CA, its own certificates first",
			fmt.Sprintf("watch       certificates of %s are accepted, and the users who come with one are named", old),
			fmt.Sprintf("drop        after kthwd pki ca drop every controller forgets %s", old),
		}
		if here.Key == nil {
			out.Steps = append(out.Steps, "            the key of the new CA stays in ca-key.pem of "+r.cfg.Name+": move it where you keep that of the old one")
		}
		return out, nil
	}
	ca, key, err := pki.NewClusterCA(here.Signer, time.Now())
	if err != nil {
		return out, err
	}
	s.New, s.Certificate = pki.CAID(ca), ca.Raw
	err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
		if err := stages.KeepKey(r.cfg.Layout.NextCAKey(), key); err != nil { // before the state: without it nobody could go on
			return s, err
		}
		return s, r.enter(ctx, client, h, &s, StageTrust)
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
		err = advice.With(errors.New("no rotation of the cluster's CA is under way"), "kthwd pki ca rotate begins one")
	}
	return s, err
}

// goOn lets a stage begin that a person decides about, if all controllers have taken the one before
// and may says nothing against it.
func (r *Rotation) goOn(ctx context.Context, client *clientv3.Client, from, to Stage, may func(State) error) error {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return err
	case s.Stage != from:
		return advice.With(fmt.Errorf("this step comes after the stage %s, and the rotation is in the stage %s", from, s.Stage), nextOf(s))
	}
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = notConfirmed(s, all)
	}
	if err == nil {
		err = may(s)
	}
	if err != nil {
		return err
	}
	return r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
		now, err := r.unfinished(ctx, client)
		if err != nil || now.revision != s.revision {
			return now, errors.Join(err, kind.Lost())
		}
		return now, r.enter(ctx, client, h, &now, to)
	})
}

// mayAbort refuses an abort that comes too late, or twice.
func (r *Rotation) mayAbort(ctx context.Context, client *clientv3.Client) (State, error) {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return s, err
	case s.Back:
		return s, advice.With(errors.New("the rotation is being aborted already"), "kthwd pki ca resume goes on with that")
	case s.Stage != StageTrust && s.Stage != StageDistribute:
		return s, advice.With(errors.New("the rotation can no longer be aborted: the new CA has signed"), "end it with kthwd pki ca drop, and rotate again if the new CA must go")
	}
	return s, nil
}

// abort turns a rotation round: every controller forgets the new CA, which has signed nothing.
func (r *Rotation) abort(ctx context.Context, client *clientv3.Client, h *stages.Hold) (State, error) {
	s, err := r.mayAbort(ctx, client)
	if err != nil {
		return s, err
	}
	s.Back = true
	return s, r.enter(ctx, client, h, &s, StageDrop)
}

const kindRotation = "ca_rotation"

// Run carries rotations on, and follows those of other controllers, until ctx ends.
func (r *Rotation) Run(ctx context.Context) { r.runner.Run(ctx, r.follow) }

func (r *Rotation) follow(ctx context.Context, client *clientv3.Client) error {
	s, err := readState(ctx, r.cfg.Layout, client, clientv3.WithSerializable())
	var holder string
	if err == nil && s.Running() {
		holder, err = kind.Holder(ctx, client)
	}
	if err != nil {
		return err
	}
	r.note(s)
	r.mu.Lock()
	r.holder = holder
	r.mu.Unlock()
	r.watch(s)
	if kept, err := os.Lstat(r.cfg.Layout.NextCAKey()); err == nil && !s.needsNext() {
		r.tidy(ctx, client, kept)
	}
	return nil
}

// watch watches the old CA from the moment at which the new one signs.
func (r *Rotation) watch(s State) {
	if !s.signsNew() {
		r.cfg.Watch.Of(nil)
		return
	}
	if cas := r.ofRotation(); len(cas) == 2 {
		r.cfg.Watch.Of(cas[0])
	}
}

// Findings tells of a rotation that is under way, waits or has stopped.
func (r *Rotation) Findings() []status.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen
	if !s.Running() {
		return nil
	}
	f := status.Finding{Health: status.Healthy, Kind: kindRotation, Do: r.verb(VerbStatus), Since: s.Since,
		Text: fmt.Sprintf("cluster's CA %s: stage %d of %d, %s", s, s.Stage.Number(), Of, s.Stage)}
	switch use := r.cfg.Watch.Use(s.Old); {
	case s.Stage == StageDistribute:
		f.Text += ": ca.pem has both CAs; copy it to every worker, balancer and user"
	case s.Stage == StageWatch && use != nil && use.Count > 0:
		f.Text += fmt.Sprintf(": %d requests with certificates of the old CA came here, the newest of %s", use.Count, use.Newest())
	case s.Stage == StageWatch:
		f.Text += ": no certificate of the old CA was seen here yet"
	case r.holder == "" && !r.runner.Acting():
		f.Health, f.Do = status.Degraded, r.verb(VerbResume)
		f.Text += ", has stopped"
		if stopped := r.runner.Stopped(); stopped != nil {
			f.Text += ": " + stopped.Error()
		}
	default:
		f.Text += ", by " + text.Line(r.holder)
	}
	return []status.Finding{f}
}

func (r *Rotation) verb(name string) string {
	return kind.Command + " " + name + " --data-dir=" + text.ShellWord(r.cfg.Layout.Dir)
}

var (
	stageMetric = prometheus.NewDesc("kthwd_ca_rotation_stage", "Stage of the rotation of the cluster's CA, as this controller knows it: 0 none, 1 trust, 2 distribute, 3 sign, 4 watch, 5 drop.", nil, nil)
	usedMetric  = prometheus.NewDesc("kthwd_ca_rotation_old_requests_total", "Requests with a client certificate of the CA that is being replaced, since this kthwd watches it.", nil, nil)
)

// Describe implements prometheus.Collector.
func (r *Rotation) Describe(ch chan<- *prometheus.Desc) { ch <- stageMetric; ch <- usedMetric }

// Collect implements prometheus.Collector.
func (r *Rotation) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	s := r.seen
	r.mu.Unlock()
	n, used := 0, 0
	if s.Running() {
		n = s.Stage.Number()
		if use := r.cfg.Watch.Use(s.Old); use != nil {
			used = use.Count
		}
	}
	ch <- prometheus.MustNewConstMetric(stageMetric, prometheus.GaugeValue, float64(n))
	ch <- prometheus.MustNewConstMetric(usedMetric, prometheus.CounterValue, float64(used))
}
