package carotation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

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
	Force bool   `json:"force,omitempty"` // of sign and drop: also where somebody is not ready for it, but for a member of etcd
	Brief bool   `json:"brief,omitempty"` // of status: ask nobody
}

// Report is the answer.
type Report struct {
	Rotation    *castate.State `json:"rotation,omitempty"` // nil before the first one
	Running     bool           `json:"running"`            // it has not ended
	Waits       bool           `json:"waits,omitempty"`    // for a person
	Holder      string         `json:"holder,omitempty"`   // the controller that carries it on; empty if none does
	Stopped     string         `json:"stopped,omitempty"`  // why it does not go on, if this controller knows
	Hint        string         `json:"hint,omitempty"`
	Controllers []Controller   `json:"controllers,omitempty"`
	Workers     []Worker       `json:"workers,omitempty"` // while the cluster's CA is distributed
	Servers     []Server       `json:"servers,omitempty"` // while the front proxy's is
	Steps       []string       `json:"steps,omitempty"`   // of a plan
}

// Halted reports whether the rotation should go on and does not.
func (r Report) Halted() bool { return r.Running && !r.Waits && r.Holder == "" }

// Private returns the handler of the verbs, for the unix socket.
func (r *Rotation) Private() map[string]http.HandlerFunc { return stages.Verbs(r.a.Path(), r.do) }

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
		err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, _ *stages.Hold) (castate.State, error) {
			return r.unfinished(ctx, client)
		})
	case VerbSign:
		err = r.goOn(ctx, client, r.a.awaited(), castate.StageSign, func(s castate.State, all []Controller) error { return r.judgeSign(ctx, s, all, in.Force) })
	case VerbDrop:
		err = r.goOn(ctx, client, castate.StageWatch, castate.StageDrop, func(s castate.State, _ []Controller) error { return r.judgeDrop(ctx, s, in.Force) })
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

// judgeSign gives the reason against the stage sign; nil without one.
func (r *Rotation) judgeSign(ctx context.Context, s castate.State, all []Controller, force bool) error {
	switch {
	case r.a.CA == Etcd:
		return r.membersReady(ctx, s, all)
	case force:
		return nil
	}
	return stages.TooEarly(r.maySign(ctx, s, time.Now()))
}

// judgeDrop gives the reason against the stage drop; nil without one. Clients of etcd that need its old CA,
// beside the members, are not known.
func (r *Rotation) judgeDrop(ctx context.Context, s castate.State, force bool) error {
	switch {
	case r.a.CA == Etcd:
		return r.membersReady(ctx, s, nil)
	case force:
		return nil
	}
	all, err := r.ask(ctx, request{Watch: s.Old}, askTime)
	if err == nil {
		err = stages.Complaints(all)
	}
	if err == nil {
		err = stages.TooEarly(r.a.mayDrop(s, all, time.Now()))
	}
	return err
}

// report gives the stage of the rotation, the CAs of each controller, and the workers and users that
// are not ready for the next step.
func (r *Rotation) report(ctx context.Context, client *clientv3.Client, brief bool) (out Report, err error) {
	s, err := r.readState(ctx, client)
	if err != nil {
		return out, err
	}
	if s.ID != "" {
		out.Rotation, out.Running, out.Waits = &s, s.Running(), s.Waits()
	}
	var left *stages.Stop
	if out.Holder, left, err = r.a.kind.Acts(ctx, client); err != nil {
		return out, err
	}
	if out.Holder == "" && r.runner.Acting() { // it has given up the right to act, and the reason why is not known yet
		out.Holder = r.cfg.Name
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
	if out.Running && r.a.CA != Etcd {
		in.Watch = s.Old
	}
	out.Controllers, err = r.ask(ctx, in, askTime)
	for i, c := range out.Controllers {
		out.Controllers[i].Restart = c.Error == "" && r.a.wantsRestart(s, c.Accepts)
	}
	if err != nil || s.Stage != castate.StageDistribute {
		return out, err
	}
	r.verifiers(ctx, s, &out)
	return out, nil
}

// rotate begins a rotation, or says what it would do.
func (r *Rotation) rotate(ctx context.Context, client *clientv3.Client, q Request) (out Report, err error) {
	s, here, err := r.prepare(ctx, client)
	if err != nil {
		return out, err
	}
	if q.Plan {
		out.Steps = r.steps(s, here)
		return out, nil
	}
	ca, key, err := pki.NewCA(here.Signer, time.Now())
	if err != nil {
		return out, err
	}
	s.New, s.Certificate = pki.CAID(ca), ca.Raw
	err = r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (castate.State, error) {
		if err := stages.KeepKey(r.nextKey(), key); err != nil { // before the state: without it nobody could go on
			return s, err
		}
		return s, r.enter(ctx, client, h, &s, castate.StageTrust)
	})
	if err != nil {
		return out, err
	}
	return r.report(ctx, client, true)
}

// steps are those of a plan.
func (r *Rotation) steps(s castate.State, here pki.CA) []string {
	own := "its own certificates first"
	if r.a.CA != Cluster {
		own = "its " + r.a.ownFile()
	}
	steps := []string{
		"trust       every controller gets a new CA and its key, and accepts its certificates, too",
		"distribute  you copy ca.pem, which has both CAs then, to every worker, balancer and user",
		fmt.Sprintf("sign        after %s every controller signs with the new CA, %s", r.a.Verb(VerbSign), own),
		fmt.Sprintf("watch       certificates of %s are accepted, and the users who come with one are named", castate.Short(s.Old)),
		fmt.Sprintf("drop        after %s every controller forgets %s", r.a.Verb(VerbDrop), castate.Short(s.Old)),
	}
	if r.a.CA == FrontProxy {
		steps[1] = "distribute  extension API servers read both CAs from a ConfigMap; you copy " + r.a.certFile() + " to those that have it as a file"
	}
	if r.a.CA == Etcd {
		steps[0] = "trust       every controller gets a new CA and its key in its files"
		steps[1] = "restart     you restart kthwd on every controller, one after the other, for etcd reads its CAs at its start"
		steps[3] = fmt.Sprintf("watch       certificates of %s are accepted, while you give programs of yours that speak to etcd others", castate.Short(s.Old))
		steps = append(steps, fmt.Sprintf("forget      you restart kthwd on every controller again, and %s ends the rotation", r.a.Verb(VerbResume)))
	}
	if here.Key == nil {
		steps = append(steps, "            the key of the new CA stays in "+r.a.keyFile()+" of "+r.cfg.Name+": move it where you keep that of the old one")
	}
	return steps
}

// unfinished is the rotation that is under way.
func (r *Rotation) unfinished(ctx context.Context, client *clientv3.Client) (castate.State, error) {
	s, err := r.readState(ctx, client)
	if err == nil && !s.Running() {
		err = advice.With(errors.New("no rotation of "+r.a.kind.What+" is under way"), r.a.Verb(VerbRotate)+" begins one")
	}
	return s, err
}

// goOn lets a stage begin that a person decides about, if all controllers have taken the one before
// and may says nothing against it.
func (r *Rotation) goOn(ctx context.Context, client *clientv3.Client, from, to castate.Stage, may func(castate.State, []Controller) error) error {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return err
	case s.Stage != from:
		return advice.With(fmt.Errorf("this step comes after the stage %s, and the rotation is in the stage %s", from, s.Stage), r.nextOf(s))
	}
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = r.a.notConfirmed(s, all)
	}
	if err == nil {
		err = may(s, all)
	}
	if err != nil {
		return err
	}
	return r.act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (castate.State, error) {
		now, err := r.unfinished(ctx, client)
		if err != nil || now.Revision != s.Revision {
			return now, errors.Join(err, r.a.kind.Lost())
		}
		return now, r.enter(ctx, client, h, &now, to)
	})
}

// mayAbort refuses an abort that comes too late, or twice.
func (r *Rotation) mayAbort(ctx context.Context, client *clientv3.Client) (castate.State, error) {
	s, err := r.unfinished(ctx, client)
	switch {
	case err != nil:
		return s, err
	case s.Back:
		return s, advice.With(errors.New("the rotation is being aborted already"), r.a.Verb(VerbResume)+" goes on with that")
	case !s.OldSigns():
		return s, advice.With(errors.New("the rotation can no longer be aborted: the new CA has signed"), "end it with "+r.a.Verb(VerbDrop)+", and rotate again if the new CA must go")
	}
	return s, nil
}

// abort turns a rotation round: every controller forgets the new CA, which has signed nothing.
func (r *Rotation) abort(ctx context.Context, client *clientv3.Client, h *stages.Hold) (castate.State, error) {
	s, err := r.mayAbort(ctx, client)
	if err != nil {
		return s, err
	}
	s.Back = true
	return s, r.enter(ctx, client, h, &s, castate.StageDrop)
}

// Run carries rotations on, and follows those of other controllers, until ctx ends.
func (r *Rotation) Run(ctx context.Context) { r.runner.Run(ctx, r.follow) }

func (r *Rotation) follow(ctx context.Context, client *clientv3.Client) error {
	s, err := r.readState(ctx, client, clientv3.WithSerializable())
	var holder string
	if err == nil && s.Running() {
		holder, err = r.runner.Follow(ctx, client)
	}
	if err != nil {
		return err
	}
	r.note(s)
	r.mu.Lock()
	r.holder = holder
	r.mu.Unlock()
	r.watch(s)
	if kept, err := os.Lstat(r.nextKey()); err == nil && !s.NeedsNext() {
		r.tidy(ctx, client, kept)
	}
	return nil
}

// watch watches the old CA from the moment at which the new one signs.
func (r *Rotation) watch(s castate.State) {
	if !s.SignsNew() || r.a.CA == Etcd { // the API server sees none of etcd's certificates
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
	f := status.Finding{Health: status.Healthy, Kind: r.a.finding, Do: r.verb(VerbStatus), Since: s.Since,
		Text: fmt.Sprintf("%s %s: stage %d of %d, %s", strings.TrimPrefix(r.a.kind.What, "the "), s, s.Stage.Number(), r.a.Stages(), s.Stage)}
	switch use := r.cfg.Watch.Use(s.Old); {
	case r.a.wantsRestart(s, r.started) && s.Waits():
		f.Text += ": restart kthwd here, one controller after the other"
		f.Do = "systemctl restart kthwd-controller"
	case s.Stage == castate.StageRestart:
		f.Text += ": kthwd was restarted here; once it was on all controllers, " + r.a.Verb(VerbSign) + " goes on"
	case s.Stage == castate.StageForget:
		f.Text += ": kthwd was restarted here; once it was on all controllers, " + r.a.Verb(VerbResume) + " ends it"
	case s.Stage == castate.StageDistribute:
		f.Text += ": " + r.a.Bring()
	case s.Stage == castate.StageWatch && r.a.CA == Etcd:
		f.Text += ": etcd accepts certificates of both CAs"
	case s.Stage == castate.StageWatch && use != nil && use.Count > 0:
		f.Text += fmt.Sprintf(": %d requests with certificates of the old CA came here, the newest of %s", use.Count, use.Newest())
	case s.Stage == castate.StageWatch:
		f.Text += ": no certificate of the old CA was seen here yet"
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
	return r.a.Verb(name) + " --data-dir=" + text.ShellWord(r.cfg.Layout.Dir)
}

// metrics are those of one CA.
type metrics struct {
	stages.Metrics
	stage, used *prometheus.Desc // used is nil where no use is known
}

func (a *authority) metrics() metrics {
	name, names := "kthwd_"+a.finding, "0 none, 1 trust, 2 distribute, 3 sign, 4 watch, 5 drop"
	if a.CA == Etcd {
		names = "0 none, 1 trust, 2 restart, 3 sign, 4 watch, 5 drop, 6 forget"
	}
	m := metrics{Metrics: a.kind.Metrics(), stage: prometheus.NewDesc(name+"_stage", "Stage of the rotation of "+a.kind.What+", as this controller knows it: "+names+".", nil, nil)}
	if a.CA != Etcd {
		m.used = prometheus.NewDesc(name+"_old_requests_total", "Requests with a client certificate of "+a.kind.What+" that is being replaced, since this kthwd watches it.", nil, nil)
	}
	return m
}

// Describe implements prometheus.Collector.
func (r *Rotation) Describe(ch chan<- *prometheus.Desc) {
	r.metrics.Describe(ch)
	ch <- r.metrics.stage
	if r.metrics.used != nil {
		ch <- r.metrics.used
	}
}

// Collect implements prometheus.Collector.
func (r *Rotation) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	s := r.seen
	r.mu.Unlock()
	n, used, since := 0, 0, time.Time{}
	if s.Running() {
		n, since = s.Stage.Number(), s.Since
		if use := r.cfg.Watch.Use(s.Old); use != nil {
			used = use.Count
		}
	}
	r.metrics.Collect(ch, since, len(r.runner.Late()))
	ch <- prometheus.MustNewConstMetric(r.metrics.stage, prometheus.GaugeValue, float64(n))
	if r.metrics.used != nil {
		ch <- prometheus.MustNewConstMetric(r.metrics.used, prometheus.CounterValue, float64(used))
	}
}
