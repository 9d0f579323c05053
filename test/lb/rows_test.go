package lb

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"kthwd/test/lbtest"
)

// warm is how long the load runs before the fault.
const warm = 1500 * time.Millisecond

// spread fails when a row lacks the watches it needs.
func spread(t *testing.T, ws watches) watches {
	t.Helper()
	if len(ws) == 0 {
		t.Fatal("no watch is on the backend that is to fail")
	}
	return ws
}

// Row 1: kill -9 of a backend.
func killed(t *testing.T, r *rig) {
	ws := r.watches(t, 30, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	victim := l.between(begin, time.Time{}).busiest()
	name := backendName(victim)
	fault := time.Now()
	r.kill(t, victim)
	dead := time.Now()
	closed := spread(t, ws.on(name)).awaitClosed(fault, 5*time.Second)
	until(t, dead.Add(4*time.Second))
	l.stop()
	before, after := l.between(begin, fault), l.between(dead, time.Time{})
	r.failures(t, "1", "backend killed: new connections failed", after)
	r.within(t, "1", "  p99 of their time, more than before", took(max(0, after.unstalled().percentile(99)-before.unstalled().percentile(99))), 5*time.Millisecond, 250*time.Millisecond)
	r.within(t, "1", "  its watches closed after", closed, 50*time.Millisecond, time.Second)
	r.count(t, "1", "  watches of others closed", len(ws.except(name).closed()), 0)
}

// Row 2: a backend that has become silent.
func blackHole(t *testing.T, r *rig) {
	ws := map[string]watches{}
	for _, kind := range []string{idle, beating, talking} {
		ws[kind] = r.watches(t, 12, kind, r.clients)
	}
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	victim := l.between(begin, time.Time{}).busiest()
	name := backendName(victim)
	fault := time.Now()
	cut(t, r.hosts[victim])
	silent := time.Now()
	limit := r.window(8*time.Second, 20*time.Second)
	closed := map[string]elapsed{}
	for _, kind := range []string{idle, beating, talking} {
		closed[kind] = spread(t, ws[kind].on(name)).awaitClosed(fault, limit)
	}
	until(t, fault.Add(limit))
	l.stop()
	before, after := l.between(begin, fault), l.between(silent, time.Time{})
	const slow = 200 * time.Millisecond
	r.failures(t, "2a", "backend silent: new connections failed", after)
	r.within(t, "2a", "  longest, more than the p99 before", took(max(0, after.unstalled().worst()-before.unstalled().percentile(99))), 300*time.Millisecond, 1500*time.Millisecond)
	r.lastOf(t, "2a", "  last that failed or took > 200 ms, begun after", after, slow, fault, 3*time.Second, 4500*time.Millisecond)
	r.within(t, "2b", "  idle watches closed after", closed[idle], 5*time.Second, 6500*time.Millisecond)
	r.within(t, "2b", "  watches that the backend writes to, after", closed[beating], 5*time.Second, 6500*time.Millisecond)
	r.within(t, "2c", "  watches that the client writes to, after", closed[talking], 5*time.Second, 6500*time.Millisecond)
	others := slices.Concat(ws[idle], ws[beating], ws[talking]).except(name)
	r.count(t, "2c", "  watches of others closed", len(others.closed()), 0)
}

// Row 3: SIGSTOP of a backend: its kernel continues to accept.
func stopped(t *testing.T, r *rig) {
	ws := r.watches(t, 30, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	victim := l.between(begin, time.Time{}).busiest()
	name := backendName(victim)
	fault := time.Now()
	r.backends[victim].Signal(t, syscall.SIGSTOP)
	closed := spread(t, ws.on(name)).awaitClosed(fault, r.window(10*time.Second, 20*time.Second))
	until(t, fault.Add(r.window(10*time.Second, 20*time.Second)))
	l.stop()
	after := l.between(fault, time.Time{})
	r.lastOf(t, "3", "backend stopped: last connection that failed or took > 1 s, begun after", after, time.Second, fault, 3*time.Second, 4500*time.Millisecond)
	r.note("3", "  new connections failed", "%d of %d", len(after.failed()), len(after))
	r.within(t, "3", "  its watches closed after", closed, 8*time.Second, 9500*time.Millisecond)
	r.count(t, "3", "  watches of others closed", len(ws.except(name).closed()), 0)
}

// Row 4: a backend that serves for 2 s and is down for 2 s, for a minute.
func flapping(t *testing.T, r *rig) {
	ws := r.watches(t, 12, beating, r.clients)
	warming := time.Now()
	l := r.load(t, 20)
	until(t, warming.Add(warm))
	victim := l.between(warming, time.Time{}).busiest()
	name := backendName(victim)
	begin := time.Now()
	var crashes []time.Time
	for next := begin.Add(2 * time.Second); next.Before(begin.Add(time.Minute)); next = next.Add(4 * time.Second) {
		until(t, next)
		crashes = append(crashes, time.Now())
		tell(t, r.backends[victim], "crash")
		until(t, next.Add(2*time.Second))
		tell(t, r.backends[victim], "open")
	}
	calm := time.Now()
	again := l.awaitAnswer(calm, name, time.Minute+5*time.Second)
	l.stop()
	all := l.between(begin, time.Time{})
	underWay := func(s sent) bool { // at the time of a crash
		return slices.ContainsFunc(crashes, func(c time.Time) bool {
			return s.backend == "" && s.at.Before(c.Add(5*time.Millisecond)) && s.end().After(c)
		})
	}
	r.failures(t, "4", "backend flapping for a minute: new connections failed", slices.DeleteFunc(slices.Clone(all), underWay))
	r.within(t, "4", "  longest", took(all.unstalled().worst()), 300*time.Millisecond, 1500*time.Millisecond)
	uses := 0
	for i, c := range crashes {
		end := calm
		if i+1 < len(crashes) {
			end = crashes[i+1]
		}
		if len(l.between(c, end).of(name)) > 0 {
			uses++
		}
	}
	r.count(t, "4", fmt.Sprintf("  times it was taken into use again, of %d", len(crashes)), uses, 3)
	if n, known := r.metric(t, "kthwd_lb_backend_state_transitions_total", backendAddress(victim)); known {
		r.note("4", "  changes of its state", "%.0f", n)
	}
	r.within(t, "4", "  used again, after it stays", again, time.Minute, time.Minute+5*time.Second)
	r.count(t, "4", "  watches of others closed", len(ws.except(name).closed()), 0)
}

// Row 5: all backends are killed, and one returns.
func allDown(t *testing.T, r *rig) {
	l := r.load(t, 20)
	until(t, time.Now().Add(warm))
	for i := range r.backends {
		r.kill(t, i)
	}
	until(t, time.Now().Add(12*time.Second))
	r.startBackend(t, 0)
	listens := time.Now()
	limit := r.window(3*time.Second, 12*time.Second)
	until(t, listens.Add(limit))
	l.stop()
	first := elapsed{d: limit, more: true}
	for _, s := range l.between(time.Time{}, time.Time{}) {
		if s.err == nil && s.end().After(listens) && s.end().Sub(listens) < first.d {
			first = span(listens, s.end())
		}
	}
	r.failures(t, "5", "all backends down, one returns: connections of the last 8 s before failed", l.between(listens.Add(-8*time.Second), listens))
	r.within(t, "5", "  first answer after it listens", first, 200*time.Millisecond, 1200*time.Millisecond)
	r.failures(t, "5", "  connections after that failed", l.between(listens, time.Time{}))
}

// Row 5b: no backend is ready, as in a fault of etcd.
func noneReady(t *testing.T, r *rig) {
	ws := r.watches(t, 12, beating, r.clients)
	l := r.load(t, 20)
	fault := time.Now()
	for _, b := range r.backends {
		tell(t, b, "readyz 500")
	}
	until(t, fault.Add(r.window(5*time.Second, 8*time.Second)))
	l.stop()
	r.failures(t, "5b", "no backend ready: new connections failed", l.between(fault, time.Time{}))
	r.count(t, "5b", "  watches closed", len(ws.closed()), 0)
}

// Row 6: each backend is restarted like a kube-apiserver with
// --shutdown-delay-duration: first not ready, but still serving.
func rollingRestart(t *testing.T, r *rig) {
	const delay = 5 * time.Second
	ws := r.watches(t, 30, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 200)
	until(t, begin.Add(warm))
	drained, cutOff := elapsed{}, 0
	for i, b := range r.backends {
		asked := time.Now()
		tell(t, b, "readyz 500")
		until(t, asked.Add(delay))
		last := l.between(asked, time.Time{}).of(backendName(i)).lastBegin(asked)
		if e := span(asked, asked.Add(last)); e.ran() > drained.ran() {
			drained = e
		}
		cutOff += len(ws.on(backendName(i)).closed())
		if _, err := fmt.Fprintln(b.Stdin, "finish"); err != nil {
			t.Fatal(err)
		}
		<-b.Exited()
		r.startBackend(t, i)
		until(t, time.Now().Add(3*time.Second))
	}
	l.stop()
	r.failures(t, "6", "rolling restart, 200 requests/s: failed", l.between(begin, time.Time{}))
	r.within(t, "6", "  last new connection after /readyz fails", drained, 2500*time.Millisecond, 4*time.Second)
	r.count(t, "6", "  watches cut while not ready", cutOff, 0)
}

// Row 7a: backends are added and removed under load.
func reload(t *testing.T, r *rig) {
	ws := r.watches(t, 200, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 100)
	until(t, begin.Add(warm))

	added := time.Now()
	r.setup.Backends = []string{backendAddress(0), backendAddress(1), backendAddress(2)}
	r.side.Change(t, r.balancer, r.setup)
	firstUse := l.awaitAnswer(added, "b2", 3*time.Second)
	until(t, added.Add(3*time.Second))

	removed := time.Now()
	r.setup.Backends = []string{backendAddress(1), backendAddress(2)}
	r.side.Change(t, r.balancer, r.setup)
	until(t, removed.Add(3*time.Second))
	l.stop()
	r.failures(t, "7a", "reload, 100 connections/s and 200 watches: failed", l.between(begin, time.Time{}))
	r.count(t, "7a", "  watches closed", len(ws.closed()), 0)
	r.within(t, "7a", "  added backend used after", firstUse, time.Second, 2500*time.Millisecond)
	r.within(t, "7a", "  removed backend's last new connection after", span(removed, removed.Add(l.between(removed, time.Time{}).of("b0").lastBegin(removed))), 50*time.Millisecond, time.Second)
	r.note("7a", "  processes of the balancer afterwards", "%d", len(r.lb.Processes()))
}

// Row 7b: the balancer is replaced, twice, with 1000 live watches.
func upgrade(t *testing.T, r *rig) {
	ws := r.watches(t, 1000, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 50)
	until(t, begin.Add(warm))
	processes := len(r.lb.Processes())
	calm := ws.late()
	ws.resetLate()
	watched := time.Now()
	gone := elapsed{}
	pid := r.balancer.PID
	for range 2 {
		e := r.replace(t, pid)
		if gone.ran() < e.ran() || e.more {
			gone = e
		}
		until(t, time.Now().Add(2*time.Second))
		if left := r.lb.Processes(); len(left) > 0 && r.judged() {
			pid = left[0]
		}
	}
	until(t, time.Now().Add(time.Second))
	l.stop()
	r.failures(t, "7b", "replaced twice with 1000 watches and 50 connections/s: failed", l.between(begin, time.Time{}))
	closed := ws.closed()
	r.count(t, "7b", "  watches closed", len(closed), 0)
	if len(closed) > 0 {
		t.Logf("%d watches closed: %s", len(closed), closed.why())
	}
	r.within(t, "7b", "  longest delay of data", elapsed{d: ws.late(), stalled: min(ws.late(), machine().longest(watched, time.Now()))}, 100*time.Millisecond, time.Second)
	r.note("7b", "  the same, before", "%v", took(calm))
	if r.judged() {
		r.within(t, "7b", "  old process gone after", gone, time.Second, 5*time.Second)
	} else {
		r.note("7b", "  old process gone after", "lives with its watches")
	}
	r.note("7b", "  processes before and after", "%d, %d", processes, len(r.lb.Processes()))
}

// replace makes the balancer replace itself and waits until the old process is gone. The
// other balancers replace their workers.
func (r *rig) replace(t *testing.T, pid int) elapsed {
	t.Helper()
	const limit = 10 * time.Second
	asked := time.Now()
	if err := syscall.Kill(pid, r.side.Upgrade); err != nil {
		t.Fatalf("%v to %d: %v", r.side.Upgrade, pid, err)
	}
	if !r.judged() {
		return elapsed{}
	}
	for slices.Contains(r.lb.Processes(), pid) {
		if machine().ranSince(asked) > limit {
			t.Errorf("process %d has not ended after %v; its log:\n%s", pid, limit, r.balancer.Log.Tail(40))
			return elapsed{d: limit, more: true}
		}
		<-time.After(5 * time.Millisecond)
	}
	gone := span(asked, time.Now())
	if pid == r.balancer.PID {
		<-r.balancer.Exited()
		if code := r.balancer.ExitCode(); code != 0 {
			t.Errorf("exit code of the old process: got %d, want 0; its log:\n%s", code, r.balancer.Log.Tail(40))
		}
	}
	return gone
}

// Row 9a: silent clients.
func silentClients(t *testing.T, r *rig) {
	const n = 1000
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(3*time.Second))
	fault := time.Now()
	const limit = 20 * time.Second
	closed := make(chan time.Time, n)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var reading sync.WaitGroup
	for range n {
		conn, err := r.clients.Dial(ctx, listenAddress)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reading.Go(func() {
			if _, err := io.Copy(io.Discard, conn); err == nil || ctx.Err() == nil {
				closed <- time.Now()
			}
		})
	}
	opened := time.Now()
	until(t, opened.Add(3*time.Second))
	silent := 0
	for _, b := range r.backends {
		silent += tell(t, b, "stats").Silent
	}
	last := elapsed{d: limit, more: true}
	for i := range n {
		select {
		case at := <-closed:
			if i == n-1 {
				last = span(opened, at)
			}
			continue
		case <-ctx.Done():
		}
		break
	}
	end := time.Now()
	l.stop()
	before, during := l.between(begin, fault), l.between(fault, end)
	r.count(t, "9a", fmt.Sprintf("%d silent clients: connections to backends", n), silent, 10)
	r.within(t, "9a", "  all closed after", last, 10*time.Second, 13*time.Second)
	r.failures(t, "9a", "  other clients failed", during)
	p99, p99Before := during.unstalled().percentile(99), before.unstalled().percentile(99)
	r.figures.add("9a", "  their p99, to that before", "≤ 2 ×", r.side.Name, fmt.Sprintf("%.1f ×", p99.Seconds()/p99Before.Seconds()))
	if r.judged() && p99 > 2*p99Before && p99 > p99Before+250*time.Millisecond {
		t.Errorf("row 9a: p99 of other clients: got %v, %v before", p99, p99Before)
	}
}

// Row 9b: 300 clients for a balancer with 200 descriptors.
func descriptors(t *testing.T, r *rig) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var open watches
	var trying sync.WaitGroup
	for range 300 {
		trying.Go(func() {
			w, err := r.watch(ctx, beating, r.clients)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, w)
		})
	}
	until(t, time.Now().Add(3*time.Second))
	pids := r.lb.Processes()
	cpu, at := lbtest.CPU(pids...), time.Now()
	until(t, at.Add(2*time.Second))
	// Its attempts follow the clock: another process's load makes the share no larger.
	share := 100 * (lbtest.CPU(pids...) - cpu).Seconds() / time.Since(at).Seconds()
	alive := r.balancer.Running()
	cancel()
	trying.Wait()
	for _, w := range open {
		w.conn.NetConn().Close()
	}
	free := time.Now()
	again := elapsed{d: patience, more: true}
	for machine().ranSince(free) < patience {
		if _, err := r.request(t.Context(), r.clients, time.Second); err == nil {
			again = span(free, time.Now())
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	r.note("9b", "200 descriptors, 300 clients: served meanwhile", "%d", len(open))
	r.note("9b", "  the process survives", "%v", alive)
	if r.judged() && !alive {
		t.Errorf("it has ended; its log:\n%s", r.balancer.Log.Tail(40))
	}
	r.count(t, "9b", "  CPU used meanwhile, %", int(share+0.5), 20)
	r.within(t, "9b", "  first answer after they left", again, 100*time.Millisecond, 2*time.Second)
}

// Row 17: clients that are stopped, or wait behind a pager, take no data but answer.
func pausedReaders(t *testing.T, r *rig) {
	const clients, pause = 5, 45 * time.Second // longer than the silence after which a peer has vanished
	var all []*tls.Conn
	for range clients {
		conn, err := r.connect(t.Context(), r.clients)
		if err == nil {
			_, err = io.WriteString(conn, "GET /stream HTTP/1.0\r\nHost: 10.42.0.1\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all = append(all, conn)
	}
	<-time.After(pause)
	cut := 0
	for _, conn := range all {
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		n := int64(0)
		if err == nil {
			n, err = io.Copy(io.Discard, response.Body)
		}
		if err != nil || n != streamBytes {
			cut++
			t.Logf("a client that had read nothing got %d of %d bytes: %v", n, streamBytes, err)
		}
	}
	r.count(t, "17", fmt.Sprintf("of %d that read nothing for %v: cut", clients, pause), cut, 0)
}

// Row 10: clients that vanish without closing.
func vanishedClients(t *testing.T, r *rig) {
	stay := r.watches(t, 6, beating, r.clients)
	before, _ := lbtest.Descriptors(r.lb.Processes()...)
	for _, kind := range []string{idle, beating, talking} {
		r.watches(t, 10, kind, r.lost)
	}
	with, _ := lbtest.Descriptors(r.lb.Processes()...)
	fault := time.Now()
	cut(t, r.lost)
	const limit = 65 * time.Second
	freed := elapsed{d: limit, more: true}
	left := 0
	for machine().ranSince(fault) < limit {
		left = 0
		for _, b := range r.backends {
			left += tell(t, b, "stats").Watches
		}
		if left <= len(stay) {
			freed = span(fault, time.Now())
			break
		}
		<-time.After(200 * time.Millisecond)
	}
	r.within(t, "10", "30 clients vanish: all freed after", freed, time.Minute, limit)
	r.note("10", "  watches left at the backends", "%d", left-len(stay))
	r.count(t, "10", "  watches of others closed", len(stay.closed()), 0)
	after, _ := lbtest.Descriptors(r.lb.Processes()...)
	r.note("10", "  descriptors of the balancer before, with, after", "%d, %d, %d", before, with, after)
}

// Row 11: the balancer itself gets no CPU for 3 s.
func starved(t *testing.T, r *rig) {
	ws := r.watches(t, 30, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	r.signalAll(syscall.SIGSTOP)
	until(t, time.Now().Add(3*time.Second))
	r.signalAll(syscall.SIGCONT)
	again := time.Now()
	until(t, again.Add(4*time.Second))
	l.stop()
	r.count(t, "11", "balancer stopped for 3 s: watches closed", len(ws.closed()), 0)
	r.failures(t, "11", "  connections failed", l.between(begin, time.Time{}))
	unused := 0
	for i := range r.backends {
		// All had connections to work through at first; then each is to get new ones.
		if len(l.between(again.Add(200*time.Millisecond), again.Add(2*time.Second)).of(backendName(i))) == 0 {
			unused++
		}
	}
	r.count(t, "11", "  backends without new connections in the 2 s after", unused, 0)
	if n, known := r.metric(t, "kthwd_lb_backend_state_transitions_total", `to="dead"`); known {
		r.count(t, "11", "  backends declared dead", int(n), 0)
	}
}

// Row 12: a backend answers /readyz in 1.5 s, longer than a check may take, and serves
// otherwise.
func slowReadyz(t *testing.T, r *rig) {
	ws := r.watches(t, 90, idle, r.clients) // one that delivers would spare them all
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	victim := l.between(begin, time.Time{}).busiest()
	fault := time.Now()
	tell(t, r.backends[victim], "delay 1500ms")
	until(t, fault.Add(15*time.Second))
	l.stop()
	r.count(t, "12", fmt.Sprintf("/readyz of a backend takes 1.5 s: its watches closed, of %d", len(ws.on(backendName(victim)))), len(ws.on(backendName(victim)).closed()), 0)
	r.count(t, "12", "  watches of others closed", len(ws.except(backendName(victim)).closed()), 0)
	r.failures(t, "12", "  new connections failed", l.between(fault, time.Time{}))
}

// Row 13: between the balancer and all backends, one packet in twenty is lost each way, and
// then one in ten.
func lossy(t *testing.T, r *rig) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("needs iptables (Debian: iptables)")
	}
	ws := r.watches(t, 30, beating, r.clients)
	quiet := r.watches(t, 30, idle, r.clients)
	l := r.load(t, 20)
	for _, percent := range []int{5, 10} {
		begin := time.Now()
		for _, host := range r.hosts {
			for _, chain := range []string{"INPUT", "OUTPUT"} {
				host.Run(t, "iptables", "-F", chain)
				host.Run(t, "iptables", "-A", chain, "-p", "tcp", "-m", "statistic", "--mode", "random", "--probability", fmt.Sprintf("%.2f", float64(percent)/100), "-j", "DROP")
			}
		}
		until(t, begin.Add(20*time.Second))
		row := "13"
		r.count(t, row, fmt.Sprintf("%d %% loss: of 30 watches that deliver closed", percent), len(ws.closed()), 0)
		r.count(t, row, fmt.Sprintf("%d %% loss: of 30 idle watches closed", percent), len(quiet.closed()), 0)
		if closed := quiet.closed(); len(closed) > 0 {
			t.Logf("%d idle watches closed: %s", len(closed), closed.why())
		}
		during := l.between(begin, time.Now().Add(-patience))
		r.failures(t, row, fmt.Sprintf("%d %% loss: new connections failed", percent), during)
		r.note(row, fmt.Sprintf("%d %% loss: new connections, p99", percent), "%v", during.percentile(99).Round(time.Millisecond))
	}
	l.stop()
}

// Row 14: the backends are given as one name with three addresses, and one of them dies.
func oneName(t *testing.T, r *rig) {
	ws := r.watches(t, 30, beating, r.clients)
	begin := time.Now()
	l := r.load(t, 20)
	until(t, begin.Add(warm))
	before := l.between(begin, time.Time{})
	victim := before.busiest()
	used := 0
	for i := range r.backends {
		if len(before.of(backendName(i))) > 0 {
			used++
		}
	}
	fault := time.Now()
	cut(t, r.hosts[victim])
	until(t, fault.Add(10*time.Second))
	l.stop()
	r.note("14", "a name with three addresses: of them used", "%d", used)
	if r.judged() && used != backendCount {
		t.Errorf("row 14: got %d addresses used, want %d", used, backendCount)
	}
	r.failures(t, "14", "  one is silent: new connections failed", l.between(fault, time.Time{}))
	r.count(t, "14", "  watches of the other addresses closed", len(ws.except(backendName(victim)).closed()), 0)
}

// Row 15: the address to listen on comes to the machine after the balancer has started, as
// with keepalived.
func addressComes(t *testing.T, r *rig) {
	until(t, time.Now().Add(warm))
	running := r.balancer.Running()
	come := time.Now()
	r.lb.Run(t, "ip", "address", "add", "10.42.0.9/24", "dev", "br0")
	l := r.load(t, 20)
	until(t, come.Add(5*time.Second))
	l.stop()
	r.note("15", "the address to listen on comes later: the balancer runs before", "%v", running)
	if r.judged() && !running {
		t.Errorf("row 15: it has ended:\n%s", r.balancer.Log.Tail(40))
	}
	r.failures(t, "15", "  connections of the 5 s after failed", l.between(come, time.Time{}))
}

// bursts is how often row 16 is done: the first one finds a test whose memory is still to
// grow, which costs the side that is measured first.
const bursts = 4

// Row 16: 5000 clients connect at once, as kubelets do that were all cut off.
func allAtOnce(t *testing.T, r *rig) {
	const n = 5000
	ws := r.watches(t, 30, beating, r.clients)
	overflows, drops := lbtest.ListenLosses(t, r.lb)
	var all requests
	var p50, p99 []time.Duration
	for i := range bursts {
		burst := r.atOnce(t, n, 2*time.Minute)
		all = append(all, burst...)
		if i > 0 {
			p50, p99 = append(p50, burst.percentile(50)), append(p99, burst.percentile(99))
		}
	}
	slices.Sort(p50)
	slices.Sort(p99)
	overflowsNow, dropsNow := lbtest.ListenLosses(t, r.lb)
	r.failures(t, "16", fmt.Sprintf("%d clients at once, %d times: failed", n, bursts), all)
	r.count(t, "16", "  connections for which the queue had no room", overflowsNow-overflows, 0)
	r.count(t, "16", "  SYNs and connections dropped", dropsNow-drops, 0)
	r.note("16", "  time to the answer, p50", "%v", took(p50[len(p50)/2]))
	r.note("16", "  time to the answer, p99", "%v", took(p99[len(p99)/2]))
	r.count(t, "16", "  watches closed", len(ws.closed()), 0)
}
