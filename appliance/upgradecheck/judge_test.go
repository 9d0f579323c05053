package upgradecheck

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/agree"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/status"
	"kthwd/appliance/upgradecheck/binary"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// good is an upgrade to the next minor of which nothing is wrong.
func good() Input {
	here := status.Controller{Name: "c0", Here: true, Kubernetes: "v1.50.1", Etcd: "4.1.0", Health: status.Healthy, Ready: true}
	other := here
	other.Name, other.Here = "c1", false
	third := other
	third.Name = "c2"
	return Input{
		Now: now,
		Binary: binary.Binary{Path: "/new", Kthwd: "v0.9.0", Kubernetes: "v1.51.0", Etcd: "4.1.2",
			Kinds: map[string][]string{"v1": {"Secret"}, "apps/v1": {"Deployment"}, "old.k8s.io/v1": {"Thing"}, "new.k8s.io/v1alpha1": {"Toy"}}},
		Record: &etcdfiles.Record{Kthwd: "v0.8.0", Kubernetes: "v1.50.1", Etcd: "4.1.0"},
		Report: &status.Report{
			Ready: true, Health: status.Healthy, Quorum: &status.Quorum{Members: 3, Needed: 2, Active: 3, Leader: "c0"},
			Backup: &status.Backup{Verified: now.Add(-time.Minute)},
		},
		Cluster:      &status.Cluster{Controllers: []status.Controller{here, other, third}},
		Etcd:         &etcdspace.Status{Leader: "c0", Members: []etcdspace.Member{{Name: "c0", State: etcdspace.StateOK, Size: 1 << 20, Quota: 8 << 20}}},
		Stored:       &Stored{Objects: map[Object]int{{Version: "apps/v1", Kind: "Deployment", Resource: "deployments", Protobuf: true}: 2}},
		Asked:        Asked{Servers: 2, APIs: map[DeprecatedAPI]bool{{Version: "v1", Resource: "endpoints"}: true}},
		Requests:     &Requests{},
		Certificates: []status.Certificate{{File: "/d/kubernetes.pem", NotAfter: now.AddDate(1, 0, 0)}},
		CopySize:     1 << 20,
	}
}

func TestJudgeGood(t *testing.T) {
	all := Judge(good())
	for _, r := range all {
		if r.Verdict != OK || r.Reason == "" || r.Do != "" {
			t.Errorf("%+v", r)
		}
	}
	if len(all) != len(Checks()) || len(Blocking(all, true)) != 0 {
		t.Errorf("got %d results, %d blocking", len(all), len(Blocking(all, true)))
	}
}

// other changes the other controller.
func other(change func(*status.Controller)) func(*Input) {
	return func(in *Input) { change(&in.Cluster.Controllers[1]) }
}

func member(change func(*etcdspace.Member)) func(*Input) {
	return func(in *Input) { change(&in.Etcd.Members[0]) }
}

var gone = DeprecatedAPI{Group: "old.k8s.io", Version: "v1beta1", Resource: "things", Removed: "1.51"}

func stored(o Object, n int) func(*Input) {
	return func(in *Input) { in.Stored.Objects[o] = n }
}

// Each row breaks one thing: that check and no other has another verdict, and its reason names
// what is wrong.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name    string
		set     func(*Input)
		check   string
		verdict Verdict
		reason  string
		do      string
	}{
		{"same version", func(in *Input) {
			in.Binary.Kthwd, in.Binary.Kubernetes, in.Binary.Etcd = in.Record.Kthwd, in.Record.Kubernetes, in.Record.Etcd
		}, "versions", Warn, "nothing to upgrade", "--binary"},
		{"older minor", func(in *Input) { in.Binary.Kubernetes = "v1.49.9" }, "versions", No, "Kubernetes v1.49.9, older than v1.50.1", "v1.50.1 or newer"},
		{"older etcd", func(in *Input) { in.Binary.Etcd = "4.0.0" }, "versions", No, "etcd 4.0.0, older than 4.1.0", ""},
		{"older kthwd", func(in *Input) { in.Binary.Kthwd = "v0.7.0" }, "versions", No, "kthwd v0.7.0, older", ""},
		{"a build between releases", func(in *Input) { in.Binary.Kthwd = "v0.7.0-dev" }, "versions", OK, "Kubernetes v1.50.1 to v1.51.0", ""},
		{"older patch", func(in *Input) { in.Binary.Kubernetes = "v1.50.0" }, "versions", Warn, "older patch v1.50.0", ""},
		{"no record, but a running kthwd", func(in *Input) {
			in.Record, in.Report.Version, in.Report.Kubernetes, in.Report.Etcd = nil, "v0.8.0", "v1.50.1", "4.1.0"
		}, "versions", OK, "v1.50.1 to v1.51.0", ""},
		{"no record", func(in *Input) { in.Record = nil }, "versions", Unknown, "no member.json", ""},
		{"broken record", func(in *Input) { in.RecordErr = errors.New("member.json: bad") }, "versions", No, "member.json: bad", ""},
		{"other one is away", other(func(c *status.Controller) { c.Error = "refused" }), "controllers", Warn, "c1 is away; it was last on Kubernetes v1.50.1", "--cluster"},
		{"other one never answered", other(func(c *status.Controller) { *c = status.Controller{Name: "c1", Error: "x"} }), "controllers", Warn, "c1 is away, and its version", ""},
		{"other one was not asked", other(func(c *status.Controller) { *c = status.Controller{Name: "c1"} }), "controllers", Unknown, "c1 has not been asked", ""},
		{"other one was not heard of", func(in *Input) { in.Cluster.Controllers = in.Cluster.Controllers[:2] }, "controllers", Unknown, "have not answered yet: 1 of 3", "--cluster"},
		{"no other one was heard of", func(in *Input) { in.Cluster.Controllers = in.Cluster.Controllers[:1] }, "controllers", Unknown, "have not answered yet: 2 of 3", "--cluster"},
		{"other one is behind", other(func(c *status.Controller) { c.Kubernetes = "v1.49.0" }), "controllers", No, "c1 is on Kubernetes v1.49.0, more than one minor", "upgrade c1 first"},
		{"other one's etcd is behind", other(func(c *status.Controller) { c.Etcd = "3.9.0" }), "controllers", No, "c1 is on etcd 3.9.0", "upgrade c1 first"},
		{"other one is done already", other(func(c *status.Controller) { c.Kubernetes = "v1.51.0" }), "controllers", OK, "c1 has Kubernetes v1.51.0", ""},
		{"not ready", func(in *Input) { in.Report.Ready, in.Report.Reason = false, "waiting" }, "health", No, "not ready here: waiting", "kthwd status"},
		{"degraded", func(in *Input) {
			in.Report.Health, in.Report.Findings = status.Degraded, []status.Finding{{Text: "the disk is slow", Do: "look"}}
		}, "health", Warn, "the disk is slow", "look"},
		{"no leader", func(in *Input) { in.Report.Quorum.Leader = "" }, "quorum", No, "no leader", ""},
		{"one of three away", func(in *Input) { in.Report.Quorum.Active = 2 }, "quorum", No, "2 of 3 members are active: without one more", ""},
		{"two members", func(in *Input) { *in.Report.Quorum = status.Quorum{Members: 2, Needed: 2, Active: 2, Leader: "c0"} }, "quorum", Warn, "all 2 members are needed", ""},
		{"alone", func(in *Input) { *in.Report.Quorum = status.Quorum{Members: 1, Needed: 1, Active: 1, Leader: "c0"} }, "quorum", OK, "clients wait", ""},
		{"NOSPACE", member(func(m *etcdspace.Member) { m.Alarms = []string{"NOSPACE"} }), "etcd", No, "c0 has the alarm NOSPACE", "--fix"},
		{"CORRUPT", member(func(m *etcdspace.Member) { m.Alarms = []string{"CORRUPT"} }), "etcd", No, "CORRUPT", ""},
		{"nearly full", member(func(m *etcdspace.Member) { m.Size = 7 << 20 }), "etcd", Warn, "has 7.0 MiB of 8.0 MiB", "--fix"},
		{"defragmenting", member(func(m *etcdspace.Member) { m.State = etcd.StateDefragmenting }), "etcd", No, "defragments", "wait"},
		{"behind", member(func(m *etcdspace.Member) { m.State = etcdspace.StateBehind }), "etcd", No, "not caught up", "wait"},
		{"a learner", member(func(m *etcdspace.Member) { m.State = etcdspace.StateLearner }), "etcd", Warn, "a join is under way", ""},
		{"silent member", member(func(m *etcdspace.Member) { m.State, m.Error = etcdspace.StateSilent, "late" }), "etcd", Warn, "does not answer: late", ""},
		{"members unknown", func(in *Input) { in.Etcd, in.EtcdErr = nil, errors.New("no socket") }, "etcd", Unknown, "no socket", ""},
		{"flag is gone", func(in *Input) {
			in.Configuration = binary.Configuration{Problems: []string{"kube-apiserver: unknown flag --x"}, Hints: []string{"remove it"}}
		}, "configuration", No, "refuses it: kube-apiserver: unknown flag --x", "remove it"},
		{"flag was translated", func(in *Input) { in.Configuration.Warnings = []string{"--old is --new"} }, "configuration", Warn, "--old is --new", ""},
		{"no answer about flags", func(in *Input) { in.ConfigurationErr = errors.New("no answer within 1m0s") }, "configuration", Unknown, "no answer", ""},
		{"drift", func(in *Input) {
			in.Drift = []agree.Row{{Program: "kube-apiserver", Key: "feature-gates", Class: agree.Must}, {Program: "kthwd", Key: "version", Class: agree.Should}}
		}, "drift", Warn, "differ in --feature-gates of kube-apiserver", "config diff"},
		{"drift is not known", func(in *Input) { in.DriftErr = errors.New("late") }, "drift", Unknown, "late", ""},
		{"removed API, client known", func(in *Input) {
			in.Requests.By = []Requester{{API: gone, User: "bob", Agent: "tool/1", Count: 3, Last: now.Add(-time.Hour)}}
		}, "deprecated APIs", No, "things of old.k8s.io/v1beta1 by bob (tool/1), 3 times, the last 1h0m ago", "deprecation-guide"},
		{"removed API, long ago", func(in *Input) {
			in.Requests.By = []Requester{{API: gone, User: "bob", Last: now.AddDate(0, -1, 0)}}
		}, "deprecated APIs", OK, "", ""},
		{"removed API, no audit log", func(in *Input) { in.Asked.APIs[gone], in.Requests, in.RequestsErr = true, nil, errors.New("no log") }, "deprecated APIs", Warn, "the clients are not known: no log", ""},
		{"removed API, nobody in the audit log", func(in *Input) { in.Asked.APIs[gone] = true }, "deprecated APIs", Warn, "names no client", ""},
		{"removed API, kthwd's own program", func(in *Input) {
			in.Asked.APIs[gone] = true
			in.Requests.By = []Requester{{API: gone, User: "system:kube-controller-manager", Last: now}}
		}, "deprecated APIs", OK, "", ""},
		{"removed later", func(in *Input) {
			in.Asked.APIs[DeprecatedAPI{Version: "v1", Resource: "x", Removed: "1.52"}] = true
		}, "deprecated APIs", OK, "x of v1 in 1.52", ""},
		{"an API server is silent", func(in *Input) { in.Asked.Silent = []string{"10.0.0.9:6443"} }, "deprecated APIs", Unknown, "10.0.0.9:6443", ""},
		{"no API server", func(in *Input) { in.AskedErr, in.Requests = errors.New("refused"), nil }, "deprecated APIs", Unknown, "refused", ""},
		{"cannot be read, removed", stored(Object{"older.k8s.io/v1beta1", "Thing", "things.older.k8s.io", true}, 3), "stored objects", No, "3 things.older.k8s.io stored as older.k8s.io/v1beta1 cannot be read", "kubectl delete things.older.k8s.io"},
		{"cannot be read, a newer version can", stored(Object{"old.k8s.io/v1beta1", "Thing", "things.old.k8s.io", true}, 1), "stored objects", No, "cannot be read", "replace -f -"},
		{"custom resource", func(in *Input) {
			in.CRDs = []CRD{{Name: "widgets.example.com", Group: "example.com", Versions: map[string]bool{"v1": true}, Stored: []string{"v1"}}}
			in.Stored.Objects[Object{"example.com/v1", "Widget", "widgets.example.com", false}] = 1
		}, "stored objects", OK, "all of 3", ""},
		{"custom resource in a group of Kubernetes", func(in *Input) {
			in.CRDs = []CRD{{Name: "gateways.gateway.k8s.io", Group: "gateway.k8s.io", Versions: map[string]bool{"v1alpha1": true}, Stored: []string{"v1alpha1"}}}
			in.Stored.Objects[Object{"gateway.k8s.io/v1alpha1", "Gateway", "gateways.gateway.k8s.io", false}] = 1
		}, "stored objects", OK, "all of 3", ""},
		{"left by a definition", stored(Object{"example.com/v1", "Widget", "widgets.example.com", false}, 2), "stored objects", Warn, "belong to no CustomResourceDefinition", ""},
		{"encrypted", func(in *Input) { in.Stored.Encrypted = map[string]int{"secrets": 4} }, "stored objects", OK, "but not the encrypted ones: 4 secrets", ""},
		{"a binary without facts", func(in *Input) { in.Binary.Kinds = nil }, "stored objects", Unknown, "does not tell", ""},
		{"alpha", stored(Object{"new.k8s.io/v1alpha1", "Toy", "toys.new.k8s.io", true}, 5), "alpha objects", Warn, "5 toys.new.k8s.io as new.k8s.io/v1alpha1", "kubectl get toys.new.k8s.io"},
		{"stored version is not served", func(in *Input) {
			in.CRDs = []CRD{{Name: "w.example.com", Group: "example.com", Versions: map[string]bool{"v1": true, "v1beta1": false}, Stored: []string{"v1beta1", "v1"}}}
		}, "custom resources", Warn, "not served: w.example.com v1beta1", "storedVersions"},
		{"stored version is gone", func(in *Input) {
			in.CRDs = []CRD{{Name: "w.example.com", Group: "example.com", Versions: map[string]bool{"v1": true}, Stored: []string{"v0", "v1"}}}
		}, "custom resources", No, "no longer exist: w.example.com v0", ""},
		{"definitions unknown", func(in *Input) { in.CRDsErr = errors.New("403") }, "custom resources", Unknown, "403", ""},
		{"certificate ends soon", func(in *Input) { in.Certificates[0].NotAfter = now.AddDate(0, 0, 29) }, "certificates", Warn, "kubernetes.pem () ends on 2030-01-31", "kthwd pki show"},
		{"certificate has expired", func(in *Input) { in.Certificates[0].NotAfter = now.Add(-1) }, "certificates", No, "expired on 2030-01-02", ""},
		{"certificate of the signing key", func(in *Input) {
			in.Certificates = append(in.Certificates, status.Certificate{File: "sa.pem", Use: "signing", NotAfter: now.Add(-1)})
		}, "certificates", OK, "2031-01-02", ""},
		{"unreadable certificate", func(in *Input) { in.Certificates[0].Problem = "no PEM" }, "certificates", Warn, "no PEM", ""},
		{"no certificate", func(in *Input) { in.Certificates = nil }, "certificates", Unknown, "no certificate", ""},
		{"no room", func(in *Input) { in.CopyErr = errors.New("/d has 1 MB free") }, "disk", No, "Kubernetes 1.50 to 1.51: /d has 1 MB free", "make room"},
		{"no room, and none needed", func(in *Input) { in.CopyErr, in.Binary.Kubernetes = errors.New("full"), "v1.50.2" }, "disk", OK, "no copy", ""},
		{"no backup", func(in *Input) { in.Report.Backup = nil }, "backup", Warn, "no verified backup", "backup create"},
		{"a backup is made", func(in *Input) {
			in.Report.Member = &status.Member{Copying: now.Add(-time.Minute)}
		}, "backup", Warn, "copies the database since 1m0s", "wait"},
		{"old backup", func(in *Input) { in.Report.Backup.Verified = now.AddDate(0, 0, -2) }, "backup", Warn, "verified 2d0h ago", ""},
		{"no backup and no copy", func(in *Input) { in.Report.Backup, in.CopyOff = nil, true }, "backup", No, "no way back", ""},
		{"old backup and no copy", func(in *Input) { in.Report.Backup.Verified, in.CopyOff = now.Add(-2*time.Hour), true }, "backup", No, "lost on the way back", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := good()
			tt.set(&in)
			for _, r := range Judge(in) {
				switch {
				case r.Check != tt.check && r.Verdict != OK:
					t.Errorf("%s is %s, too: %s", r.Check, r.Verdict, r.Reason)
				case r.Check == tt.check && (r.Verdict != tt.verdict || !strings.Contains(r.Reason, tt.reason) || !strings.Contains(r.Do, tt.do)):
					t.Errorf("got %+v, want %s with %q and %q", r, tt.verdict, tt.reason, tt.do)
				}
			}
		})
	}
}

// A skipped minor is the matter of two checks: the data here, and the other controllers.
func TestJudgeSkippedMinor(t *testing.T) {
	in := good()
	in.Binary.Kubernetes = "v1.52.0"
	for _, r := range Judge(in) {
		if slices.Contains([]string{"versions", "controllers"}, r.Check) != (r.Verdict == No) {
			t.Errorf("%+v", r)
		}
		if r.Check == "versions" && (!strings.Contains(r.Reason, "skips a minor") || !strings.Contains(r.Do, "Kubernetes 1.51 first")) {
			t.Errorf("%+v", r)
		}
	}
	in = good()
	in.Cluster.Controllers[0].Kubernetes, in.Record.Kubernetes, in.Cluster.Controllers[1].Kubernetes = "v1.50.0", "v1.50.0", "v1.49.0"
	if r := judgeControllers(in); r.Verdict != No {
		t.Errorf("an upgrade that is not finished: %+v", r)
	}
}

// What cannot be found out is not judged as good, and never blocks by itself.
func TestJudgeUnknown(t *testing.T) {
	in := good()
	down := Input{Now: now, Binary: in.Binary, Record: in.Record, Certificates: in.Certificates, CopySize: 1, Down: errors.New("kthwd is not running: no process has /d")}
	known := []string{"binary", "versions", "configuration", "certificates", "disk"}
	for _, r := range Judge(down) {
		if want := map[bool]Verdict{true: OK, false: Unknown}[slices.Contains(known, r.Check)]; r.Verdict != want {
			t.Errorf("without a running kthwd: got %+v, want %s", r, want)
		}
		if r.Verdict == Unknown && (!strings.Contains(r.Reason, "no process has /d") || r.Do != start) {
			t.Errorf("%s does not say why: %+v", r.Check, r)
		}
	}
	in.BinaryErr = errors.New("/new is no kthwd")
	all := Judge(in)
	for _, r := range all {
		if r.Check != "binary" && r.Verdict == No {
			t.Errorf("because of the binary: %+v", r)
		}
	}
	if some := Blocking(all, false); len(some) != 1 || some[0].Check != "binary" || some[0].Reason != "/new is no kthwd" {
		t.Errorf("got %+v", some)
	}
	if some := Blocking(Judge(down), false); len(some) != 0 {
		t.Errorf("got %+v", some)
	}
	if some := Blocking(Judge(down), true); len(some) != len(Checks())-len(known) {
		t.Errorf("got %+v", some)
	}
}
