package ha

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"kthwd/test/kthwtest"
)

const (
	objectsPrefix = "/registry/configmaps/" + namespace + "/"
	leasesPrefix  = "/registry/leases/kube-system/"
	marker        = "marker" // the object that tells where a round ends
)

// rig is a cluster with clients, and what has been found out about it so far.
type rig struct {
	*cluster
	clients *clients
	leases  leases
	audits  []*auditLog
	actions []action // not judged yet

	rev     int64             // up to which all has been checked
	objects map[string]change // that were there then
	rounds  int64
	random  *rand.Rand // which of several machines
}

func newRig(t *testing.T, network bool, binary string) *rig {
	t.Helper()
	r := &rig{cluster: newCluster(t, network, binary), objects: map[string]change{}}
	for _, m := range r.controllers() {
		r.audits = append(r.audits, &auditLog{controller: m.name, path: filepath.Join(m.dir, "audit.log")})
	}
	r.clients = startClients(t, r.cluster)
	kthwtest.WaitFor(t, "both leases to be held, and the clients to work", soon, func() error {
		r.readLeases(t)
		if r.leases.holder(kcm) == "" || r.leases.holder(scheduler) == "" {
			return fmt.Errorf("held by %q and %q", r.leases.holder(kcm), r.leases.holder(scheduler))
		}
		if n := len(r.clients.since(time.Time{})); n < 100 {
			return fmt.Errorf("%d writes so far", n)
		}
		return nil
	})
	return r
}

// round is a fault from its beginning until everything is well again.
type round struct {
	*rig
	t      *testing.T
	result *result
	pids   map[*machine]int
	begun  time.Time // of the fault
	over   time.Time // when the fault from outside had ended
	end    time.Time // when all was ready again

	quiet     time.Duration // longest wait of a writer beside the fault: before it, and after all was well again
	longest   map[string]gap
	survivors []*machine // whose processes must be the same at the end

	oldStops atomic.Bool  // a kthwd of the minor before is stopping
	excused  atomic.Int64 // componentstatuses that met it
}

// run does to the rig what a row says, and judges what came of it.
func (r *rig) run(t *testing.T, w *row) *result {
	t.Helper()
	o := &round{rig: r, t: t, result: &result{Row: w.name, Fault: w.fault, Reach: w.reach}, pids: map[*machine]int{}}
	starts := map[*machine]int{}
	for _, m := range r.machines {
		o.pids[m], starts[m] = m.pid(), m.count()
	}
	o.begun = time.Now()
	w.run(o)
	if o.over.IsZero() {
		o.over = time.Now()
	}
	r.awaitReady(t, recovery)
	o.end = time.Now()
	o.samePID(o.survivors...)
	o.result.Recovered = o.end.Sub(o.over)
	o.awaitWork()
	sleep(t.Context(), settle)
	for _, m := range r.machines {
		o.result.Restarts += m.count() - starts[m]
	}
	o.quiet = max(r.clients.longestWait(o.begun.Add(-settle), o.begun), r.clients.longestWait(time.Now().Add(-settle), time.Now()))
	any, one, patient := gaps(r.clients.since(o.begun.Add(-settle)), o.begun, time.Now())
	o.longest = map[string]gap{"any writer": any, "one writer": one, "the patient writer": patient}
	o.result.Gap, o.result.OneWriter, o.result.PatientWriter = any.Took, one.Took, patient.Took
	o.note("one writer waited from %+.1f s on, the patient one from %+.1f s on", one.From.Sub(o.begun).Seconds(), patient.From.Sub(o.begun).Seconds())
	if w.judge != nil {
		w.judge(o)
	} else {
		o.reach(one.Took, w.within)
	}
	o.check(w.relists)
	return o.result
}

// settle is how long all has to work before the next fault, so that its share of
// the writes is seen, too.
const settle = time.Second

// tooLate is how many times as long as promised something may take: more is not
// the machine's fault.
const tooLate = 3

// promised is how many of a quiet writer's longest waits the shortest promise is, on a machine
// that does nothing else: half a second. A machine that makes every write wait longer makes
// what follows a fault longer as well.
const promised = 10

// reach holds a time to what the row promises, or to the waits of the same round where the
// machine is slow even without a fault.
func (o *round) reach(got, within time.Duration) {
	o.result.Measured = seconds(got)
	if got > within {
		o.explain()
		o.note("longest wait beside the fault %s", seconds(o.quiet))
		o.missed(got > tooLate*max(within, promised*o.quiet), "reach: got %v, want ≤ %v", got.Round(time.Millisecond), within)
	}
}

// missed notes that a figure is not what the row promises. On a machine that others
// use that decides nothing: it is a fault if it is bad, or if KTHWD_HA_STRICT is set.
func (o *round) missed(bad bool, format string, args ...any) {
	o.t.Helper()
	if bad || os.Getenv("KTHWD_HA_STRICT") != "" {
		o.fault(format, args...)
		return
	}
	text := fmt.Sprintf(format, args...)
	o.result.Missed = append(o.result.Missed, text)
	o.t.Logf("%s: missed: %s", o.result.Row, text)
}

// explain says what the longest waits were about.
func (o *round) explain() {
	o.t.Helper()
	for _, who := range sorted(o.longest) {
		g := o.longest[who]
		o.t.Logf("%s: %v from %s on (%+.3f s)", who, g.Took, g.From.Format(clock), g.From.Sub(o.begun).Seconds())
		if g.End != nil {
			o.t.Logf("  ended by %s of %s, acknowledged %s, begun %s, after\n\t%s", g.End.change, g.End.Writer, g.End.At.Format(clock),
				g.End.Begun.Format(clock), strings.Join(g.End.Failed, "\n\t"))
		}
	}
}

// fault notes that something is not as it must be.
func (o *round) fault(format string, args ...any) {
	o.t.Helper()
	text := fmt.Sprintf(format, args...)
	o.result.Problems = append(o.result.Problems, text)
	o.t.Errorf("%s: %s", o.result.Row, text)
}

func (o *round) note(format string, args ...any) {
	o.result.Notes = append(o.result.Notes, fmt.Sprintf(format, args...))
}

// samePID fails unless a machine's process is the one that was there before.
func (o *round) samePID(machines ...*machine) {
	o.t.Helper()
	for _, m := range machines {
		r, err := m.status()
		if got := m.pid(); err != nil || got != o.pids[m] || r.PID != got {
			o.fault("%s: got process %d (status says %d, %v), want %d as before; its last end: %+v", m.name, got, r.PID, err, o.pids[m], m.lastExit())
		}
	}
}

// check pauses the writers, takes the round's history, and judges it.
func (o *round) check(relistsAllowed bool) {
	o.t.Helper()
	h, relists := o.takeHistory()
	o.result.Writes, o.result.Events, o.result.Relists = len(h.Acks), len(h.Truth), relists
	problems := append(h.check(), o.clients.takeProblems()...)
	if relists > 0 && !relistsAllowed {
		problems = append(problems, fmt.Sprintf("watch: %d times no API server knew what came after the last event", relists))
	}
	o.readActions()
	actions := o.actions
	o.actions, o.result.Actions = nil, len(actions)
	problems = append(problems, misdeeds(o.leases.tenures, actions)...)
	if err := o.sameHash(); err != nil {
		problems = append(problems, err.Error())
	}
	for _, m := range o.controllers() {
		if n := m.log.UnloggedLines(); n > 0 {
			problems = append(problems, fmt.Sprintf("%d lines of %s's log are not kthwd's own", n, m.name))
		}
	}
	for _, p := range problems {
		o.fault("%s", p)
	}
	if len(h.Acks) < 20 {
		o.fault("%d writes: too few to say anything", len(h.Acks))
	}
}

// takeHistory is everything from the last check to now.
func (o *round) takeHistory() (h *history, relists int) {
	o.t.Helper()
	resume := o.clients.pause()
	defer resume()
	o.rounds++
	end := o.mark()
	h = &history{Start: o.rev, End: end, Before: o.objects, Watches: map[string][]seen{}, Finals: map[string][]change{}}
	h.Truth = o.truth(end)
	for name, w := range o.clients.watchers {
		kthwtest.WaitFor(o.t, "watcher "+name+" to see all", soon, func() error { return w.reached(end) })
		events, again := w.take(end)
		h.Watches[name] = events
		if o.rounds == 1 {
			again = 0 // each begins with a list
		}
		relists += again
	}
	for _, m := range o.controllers() {
		h.Finals[m.name] = o.listAt(m)
	}
	o.readLeases(o.t)
	o.clients.mu.Lock()
	h.Acks, o.clients.acks = o.clients.acks, nil
	o.clients.mu.Unlock()
	o.rev, o.objects = end, h.after()
	return h, relists
}

// mark writes an object after all others and returns its revision.
func (o *round) mark() (rev int64) {
	o.t.Helper()
	kthwtest.WaitFor(o.t, "the mark at the end", soon, func() error {
		ctx, cancel := context.WithTimeout(o.t.Context(), 5*time.Second)
		defer cancel()
		want := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: marker}, Data: map[string]string{"n": fmt.Sprint(o.rounds)}}
		got, err := o.clients.objects.Update(ctx, want, metav1.UpdateOptions{})
		if err != nil && o.rounds == 1 {
			got, err = o.clients.objects.Create(ctx, want, metav1.CreateOptions{})
		}
		if err == nil {
			rev = revision(got.ResourceVersion)
		}
		return err
	})
	return rev
}

// truth is etcd's own history of the objects, as one member has it.
func (o *round) truth(until int64) (changes []change) {
	o.t.Helper()
	m := o.followers(o.t)[0] // has all that is committed once it has the mark
	client, err := m.etcd()
	if err != nil {
		o.t.Fatal(err)
	}
	defer client.Close()
	each(o.t, client, objectsPrefix, o.rev+1, until, func(e *clientv3.Event) {
		key := strings.TrimPrefix(string(e.Kv.Key), objectsPrefix)
		if e.Type == clientv3.EventTypeDelete {
			changes = append(changes, change{Rev: e.Kv.ModRevision, Key: key, Deleted: true})
			return
		}
		object, ok := decode(o.t, e.Kv.Value).(*corev1.ConfigMap)
		if !ok {
			o.t.Fatalf("%s is no ConfigMap", e.Kv.Key)
		}
		c := changeOf(object)
		c.Rev, c.Key = e.Kv.ModRevision, key
		changes = append(changes, c)
	})
	return changes
}

// each gives every event of a prefix from one revision to another to see. The
// last revision has to be one of an event.
func each(t *testing.T, client *clientv3.Client, prefix string, from, until int64, see func(*clientv3.Event)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for resp := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			t.Fatalf("etcd's history of %s from revision %d: %v", prefix, from, err)
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision <= until {
				see(e)
			}
			if e.Kv.ModRevision >= until {
				return
			}
		}
	}
	t.Fatalf("etcd's history of %s ends before revision %d: %v", prefix, until, ctx.Err())
}

func decode(t *testing.T, value []byte) runtime.Object {
	t.Helper()
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		t.Fatalf("a value of etcd: %v", err)
	}
	return object
}

// readLeases brings the tenures up to now.
func (r *rig) readLeases(t *testing.T) {
	t.Helper()
	client, err := r.leader(t).etcd()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	now, err := client.Get(ctx, leasesPrefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatalf("read the leases: %v", err)
	}
	last := r.leases.rev
	for _, kv := range now.Kvs {
		last = max(last, kv.ModRevision)
	}
	if last == r.leases.rev {
		return
	}
	each(t, client, leasesPrefix, r.leases.rev+1, last, func(e *clientv3.Event) {
		if lease, ok := decodeIf(t, e).(*coordinationv1.Lease); ok {
			r.leases.add(lease)
		}
	})
	r.leases.rev = last
}

func decodeIf(t *testing.T, e *clientv3.Event) runtime.Object {
	if e.Type == clientv3.EventTypeDelete {
		return nil
	}
	return decode(t, e.Kv.Value)
}

// awaitWork waits until both programs have done something after the fault: one that
// died with its lease is followed only when that has run out, which all being ready
// does not tell.
func (o *round) awaitWork() {
	o.t.Helper()
	kthwtest.WaitFor(o.t, "both programs to act", recovery, func() error {
		o.readActions()
		last := time.Time{}
		for _, program := range []string{kcm, scheduler} {
			first := o.firstAction(program)
			if first.IsZero() {
				return errors.New(program + " has done nothing yet")
			}
			if first.After(last) {
				last = first
			}
		}
		o.result.Works = last.Sub(o.over)
		return nil
	})
}

// firstAction is when a program did its first thing after the fault, or zero.
func (o *round) firstAction(program string) (first time.Time) {
	for _, a := range o.actions {
		if a.Component == program && a.Begun.After(o.over) && (first.IsZero() || a.Begun.Before(first)) {
			first = a.Begun
		}
	}
	return first
}

// readActions adds what the two programs did since it was called last, everywhere.
func (r *rig) readActions() {
	for _, a := range r.audits {
		found, err := a.actions()
		if err != nil {
			panic(fmt.Sprintf("audit log of %s: %v", a.controller, err))
		}
		r.actions = append(r.actions, found...)
	}
}

// listAt is what one API server says is there, by a read that etcd's quorum confirms.
func (o *round) listAt(m *machine) (found []change) {
	o.t.Helper()
	client, hangUp := o.client(o.t, fmt.Sprintf("%s:%d", m.address, m.ports.Secure), 10*time.Second)
	defer hangUp()
	kthwtest.WaitFor(o.t, "a list from "+m.name, soon, func() error {
		list, err := client.CoreV1().ConfigMaps(namespace).List(o.t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		found = nil
		for i := range list.Items {
			found = append(found, changeOf(&list.Items[i]))
		}
		return nil
	})
	return found
}

// sameHash compares what the members have on their disks.
func (o *round) sameHash() error {
	hashes := map[string]uint32{}
	compacted := map[string]int64{}
	for _, m := range o.controllers() {
		client, err := m.etcd()
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(o.t.Context(), soon)
		defer cancel()
		got, err := client.HashKV(ctx, client.Endpoints()[0], o.rev)
		if err != nil {
			return fmt.Errorf("hash of %s at revision %d: %w", m.name, o.rev, err)
		}
		hashes[m.name], compacted[m.name] = got.Hash, got.CompactRevision
	}
	for _, m := range o.controllers()[1:] {
		first := o.machines[0].name
		if compacted[m.name] == compacted[first] && hashes[m.name] != hashes[first] {
			return errors.New("members differ: hash of " + fmt.Sprint(hashes, " at revision ", o.rev))
		}
	}
	return nil
}
