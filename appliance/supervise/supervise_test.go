package supervise

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Each of these tests also finds leaks: a bubble does not end while one of its
// goroutines remains.

func TestStartOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", time.Second, 0))
		api := g.Add(d.server("api", 2*time.Second, 0), etcd)
		g.Add(d.server("kcm", time.Second, 0), api)
		g.Add(d.server("seed", time.Second, 0), api)
		r := run(g, log)

		time.Sleep(1500 * time.Millisecond)
		checkStates(t, g, "etcd=ready api=starting kcm=waiting seed=waiting")
		time.Sleep(10 * time.Second)
		checkStates(t, g, "etcd=ready api=ready kcm=ready seed=ready")
		d.check(t, "0s etcd starts", "1s api starts", "3s kcm starts", "3s seed starts")
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestIndependentOnesStartInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		a := g.Add(d.server("a", 3*time.Second, 0))
		b := g.Add(d.server("b", time.Second, 0))
		g.Add(d.server("alone", 0, 0))
		g.Add(d.server("after both", 0, 0), a, b)
		r := run(g, log)
		time.Sleep(10 * time.Second)
		d.check(t, "0s a starts", "0s b starts", "0s alone starts", "3s after both starts")
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestReverseStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		bridge := g.Add(d.server("bridge", 0, 0))
		etcd := g.Add(d.server("etcd", 0, time.Second), bridge)
		api := g.Add(d.server("api", 0, 2*time.Second), etcd)
		g.Add(d.server("kcm", 0, 3*time.Second), api)
		g.Add(d.server("sched", 0, time.Second), api)
		r := run(g, log)
		synctest.Wait()
		d.begun, d.lines = time.Now(), nil

		r.stop()
		time.Sleep(6 * time.Second)
		checkError(t, r.ended(t), "")
		d.check(t,
			"0s kcm asked to stop", "0s sched asked to stop", "1s sched stopped", "3s kcm stopped",
			"3s api asked to stop", "5s api stopped",
			"5s etcd asked to stop", "6s etcd stopped",
			"6s bridge asked to stop", "6s bridge stopped")
		d.before(t, "etcd stopped", "bridge asked to stop")
		checkStates(t, g, "bridge=stopped etcd=stopped api=stopped kcm=stopped sched=stopped")
	})
}

// patient records when its group begins to stop, and when it is asked to stop.
func (d *diary) patient(name string) part {
	return part{name, func(ctx context.Context, ready func()) error {
		ready()
		leaving := Leaving(ctx)
		<-leaving.Done()
		d.note("%s leaves: %v, is asked to stop: %v", name, context.Cause(leaving), ctx.Err() != nil)
		<-ctx.Done()
		d.note("%s asked to stop", name)
		return nil
	}}
}

func TestLeaving(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		end        func(*running)
	}{
		{"asked to", "context canceled", func(r *running) { r.stop() }},
		{"after a failure", "boom", func(r *running) { r.Fail(errors.New("boom")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, log := newGroup()
				d := newDiary()
				api := g.Add(d.patient("api"))
				g.Add(d.server("kcm", 0, 3*time.Second), api)
				r := run(g, log)
				synctest.Wait()
				checkStates(t, g, "api=ready kcm=ready")
				d.begun, d.lines = time.Now(), nil

				tt.end(r)
				synctest.Wait()
				if ok, reason := g.Ready(); ok || reason != "stopping" {
					t.Errorf("Ready: got %v %q, want false and stopping", ok, reason)
				}
				time.Sleep(3 * time.Second)
				_ = r.ended(t)
				d.check(t, "0s api leaves: "+tt.want+", is asked to stop: false", "0s kcm asked to stop", "3s kcm stopped", "3s api asked to stop")
			})
		})
	}
}

func TestLeavingWithoutAGroup(t *testing.T) {
	if err := Leaving(t.Context()).Err(); err != nil {
		t.Errorf("got %v, want a context that goes on", err)
	}
}

func TestEarlyReturn(t *testing.T) {
	boom := errors.New("boom")
	tests := []struct {
		name  string
		who   string
		ready bool // it was ready before
		err   error
		want  string
		state string
	}{
		{"leaf with an error", "kcm", true, boom, "kcm: boom", "etcd=stopped api=stopped kcm=failed"},
		{"leaf without an error", "kcm", true, nil, "kcm: ended without being asked to", "etcd=stopped api=stopped kcm=failed"},
		{"leaf before it was ready", "kcm", false, boom, "kcm: boom", "etcd=stopped api=stopped kcm=failed"},
		{"in the middle", "api", true, boom, "api: boom", "etcd=stopped api=failed kcm=stopped"},
		{"in the middle, not ready", "api", false, nil, "api: ended without being asked to", "etcd=stopped api=failed kcm=stopped"},
		{"the first", "etcd", true, boom, "etcd: boom", "etcd=failed api=stopped kcm=stopped"},
		{"the first, not ready", "etcd", false, boom, "etcd: boom", "etcd=failed api=stopped kcm=stopped"},
		{"not asked, though it says so", "etcd", true, context.Canceled, "etcd: context canceled", "etcd=failed api=stopped kcm=stopped"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, log := newGroup()
				d := newDiary()
				of := func(name string) Component {
					if name != tt.who {
						return d.server(name, 0, time.Second)
					}
					return part{name, func(_ context.Context, ready func()) error {
						if tt.ready {
							ready()
						}
						time.Sleep(time.Minute)
						return tt.err
					}}
				}
				etcd := g.Add(of("etcd"))
				g.Add(of("kcm"), g.Add(of("api"), etcd))
				r := run(g, log)
				time.Sleep(2 * time.Minute)
				err := r.ended(t)
				checkError(t, err, tt.want)
				if tt.err != nil && !errors.Is(err, tt.err) {
					t.Errorf("got %v, want an error that is %v", err, tt.err)
				}
				checkStates(t, g, tt.state)
				log.has(t, "level=ERROR", "stopping all components", tt.want)
			})
		})
	}
}

func TestFailureStopsTheOthersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", 0, 0))
		api := g.Add(d.server("api", 0, time.Second), etcd)
		g.Add(d.server("kcm", 0, time.Second), api)
		g.Add(part{"sched", func(context.Context, func()) error { time.Sleep(time.Second); return errors.New("boom") }}, api)
		r := run(g, log)
		time.Sleep(time.Minute)
		checkError(t, r.ended(t), "sched: boom")
		d.before(t, "kcm stopped", "api asked to stop")
		d.before(t, "api stopped", "etcd asked to stop")
		if got := g.Status()[3].LastError; got != "sched: boom" {
			t.Errorf("last error: got %q, want %q", got, "sched: boom")
		}
	})
}

func TestTheFirstFailureIsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		late := part{"late", func(ctx context.Context, ready func()) error {
			<-ctx.Done()
			return errors.New("could not say goodbye")
		}}
		g.Add(late)
		g.Add(part{"first", func(context.Context, func()) error { time.Sleep(time.Second); return errors.New("boom") }})
		r := run(g, log)
		time.Sleep(time.Second)
		checkError(t, r.ended(t), "first: boom")
		log.has(t, "level=WARN", "stopped with an error", "component=late", "could not say goodbye")
	})
}

func TestErrorAfterCancellationIsOnlyLogged(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		logged bool
	}{
		{"an error", errors.New("lease not released"), true},
		{"the context's own", context.Canceled, false},
		{"none", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, log := newGroup()
				g.Add(part{"kcm", func(ctx context.Context, ready func()) error {
					ready()
					<-ctx.Done()
					return tt.err
				}})
				r := run(g, log)
				synctest.Wait()
				r.stop()
				checkError(t, r.ended(t), "")
				checkStates(t, g, "kcm=stopped")
				if tt.logged {
					log.has(t, "level=WARN", "stopped with an error", "component=kcm", tt.err.Error())
				} else {
					log.hasNot(t, "level=WARN")
				}
			})
		})
	}
}

func TestStopDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", 0, 0))
		api := g.Add(d.server("api", time.Hour, 0), etcd)
		g.Add(d.server("kcm", 0, 0), api)
		r := run(g, log)
		time.Sleep(time.Minute)
		checkStates(t, g, "etcd=ready api=starting kcm=waiting")
		r.stop()
		checkError(t, r.ended(t), "")
		d.check(t, "0s etcd starts", "0s api starts",
			"1m0s api stopped before it was ready", "1m0s etcd asked to stop", "1m0s etcd stopped")
		d.before(t, "api stopped before it was ready", "etcd asked to stop")
		checkStates(t, g, "etcd=stopped api=stopped kcm=stopped")
	})
}

func TestStopBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGroup()
		g.Fail(errors.New("never mind"))
		g.Add(part{"etcd", func(context.Context, func()) error {
			t.Error("etcd was started")
			return nil
		}})
		checkError(t, g.Run(context.Background()), "never mind")
		checkStates(t, g, "etcd=stopped")
	})
}

func TestFailFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", 0, 0))
		g.Add(d.server("api", 0, time.Second), etcd)
		r := run(g, log)
		synctest.Wait()
		g.Fail(errors.New("klog.Fatal"))
		g.Fail(errors.New("and once more"))
		r.stop()
		time.Sleep(time.Second)
		checkError(t, r.ended(t), "klog.Fatal")
		d.before(t, "api stopped", "etcd asked to stop")
		log.hasNot(t, "once more")
	})
}

func TestBudgetOverrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		release := make(chan struct{})
		etcd := g.Add(d.server("etcd", 0, time.Second))
		api := g.Add(d.server("api", 0, time.Second), etcd)
		g.Add(part{"kcm", func(_ context.Context, ready func()) error {
			ready()
			<-release
			return errors.New("too late to matter")
		}}, api).StopWithin(3 * time.Second)
		r := run(g, log)
		synctest.Wait()
		d.begun, d.lines = time.Now(), nil
		r.stop()
		time.Sleep(5 * time.Second)
		checkError(t, r.ended(t), "kcm: did not stop within 3s")
		d.check(t, "3s api asked to stop", "4s api stopped", "4s etcd asked to stop", "5s etcd stopped")
		checkStates(t, g, "etcd=stopped api=stopped kcm=failed")
		log.has(t, "level=ERROR", "given up", "component=kcm")
		close(release)
	})
}

func TestOverrunAfterAFailureIsOnlyLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		release := make(chan struct{})
		etcd := g.Add(part{"etcd", func(context.Context, func()) error { <-release; return nil }})
		g.Add(part{"api", func(context.Context, func()) error { return nil }}, etcd)
		r := run(g, log)
		synctest.Wait()
		g.Fail(errors.New("boom"))
		time.Sleep(DefaultStopBudget)
		checkError(t, r.ended(t), "boom")
		log.has(t, "level=ERROR", "given up", "etcd: did not stop within 10s")
		checkStates(t, g, "etcd=failed api=stopped")
		close(release)
	})
}

// A component that fails while its dependents still stop is named, and the stop
// continues.
func TestFallsOverDuringTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		bridge := g.Add(d.server("bridge", 0, 0))
		etcd := g.Add(part{"etcd", func(ctx context.Context, ready func()) error {
			ready()
			time.Sleep(time.Minute + time.Second)
			return errors.New("disk gone")
		}}, bridge)
		g.Add(d.server("api", 0, 5*time.Second), etcd)
		r := run(g, log)
		time.Sleep(time.Minute)
		r.stop()
		time.Sleep(5 * time.Second)
		checkError(t, r.ended(t), "")
		checkStates(t, g, "bridge=stopped etcd=failed api=stopped")
		log.has(t, "level=WARN", "ended during the stop", "etcd: disk gone")
		d.before(t, "api stopped", "bridge asked to stop")
	})
}

// The order also holds for an indirect dependent when the component in between has
// already gone.
func TestEarlyReturnKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", 0, 0))
		api := g.Add(part{"api", func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Second)
			return errors.New("boom")
		}}, etcd)
		g.Add(d.server("kcm", 0, 5*time.Second), api)
		r := run(g, log)
		time.Sleep(time.Minute)
		checkError(t, r.ended(t), "api: boom")
		d.check(t, "0s etcd starts", "0s kcm starts", "1s kcm asked to stop", "6s kcm stopped", "6s etcd asked to stop", "6s etcd stopped")
	})
}

func TestReadyTwiceIsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		twice := g.Add(part{"etcd", func(ctx context.Context, ready func()) error {
			time.Sleep(time.Second)
			ready()
			time.Sleep(time.Second)
			ready()
			<-ctx.Done()
			return nil
		}})
		g.Add(d.server("api", 0, 0), twice)
		r := run(g, log)
		time.Sleep(time.Minute)
		if got, want := g.Status()[0].ReadyAt, time.Second; got != want {
			t.Errorf("ready at: got %v, want %v", got, want)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}
