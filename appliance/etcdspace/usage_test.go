package etcdspace

import "testing"

func TestResourceOf(t *testing.T) {
	for key, want := range map[string][2]string{
		"/registry/configmaps/default/a":                   {"configmaps", "default"},
		"/registry/minions/n1":                             {"minions", ""},
		"/registry/services/specs/default/kubernetes":      {"services/specs", "default"},
		"/registry/services/endpoints/default/kubernetes":  {"services/endpoints", "default"},
		"/registry/apiregistration.k8s.io/apiservices/v1.": {"apiservices.apiregistration.k8s.io", ""},
		"/registry/example.com/widgets/team-a/w":           {"widgets.example.com", "team-a"},
		"/registry/leases/kube-system/kube-scheduler":      {"leases", "kube-system"},
		"/registry/masterleases/10.0.0.1":                  {"masterleases", ""},
		"/registry/ranges/serviceips":                      {"ranges", ""},
		"/kthwd/joins/a":                                   {"/kthwd", ""},
		"compact_rev_key":                                  {"/compact_rev_key", ""},
		"/registry/health":                                 {"/registry", ""},
		"":                                                 {"/", ""},
		"/registry/pods/a/b/c":                             {"pods", "a"},
	} {
		if resource, namespace := ResourceOf(key); resource != want[0] || namespace != want[1] {
			t.Errorf("%s: got %q, %q, want %q", key, resource, namespace, want)
		}
	}
}

// The leader of a plan, the states of members and who may lead next.
func TestJudge(t *testing.T) {
	all := func(change func(s *Status)) Status {
		s := Status{}
		for i, name := range []string{"c0", "c1", "c2"} {
			s.Members = append(s.Members, Member{Name: name, id: uint64(i + 1), State: StateOK, knows: 2, Applied: 5000})
		}
		change(&s)
		s.judge()
		return s
	}
	for name, tt := range map[string]struct {
		s      Status
		leader string
		sound  string // the error; "" for none
		move   string // the target c0
	}{
		"healthy":   {all(func(*Status) {}), "c1", "", ""},
		"behind":    {all(func(s *Status) { s.Members[0].Applied = 100 }), "c1", "not while a member is unhealthy: c0 is behind", "c0 is behind"},
		"learner":   {all(func(s *Status) { s.Members[0].Learner = true }), "c1", "not while a member is unhealthy: c0 is learner", "c0 is a learner and cannot lead"},
		"silent":    {all(func(s *Status) { s.Members[0].Error, s.Members[0].State = "refused", "" }), "c1", "not while a member is unhealthy: c0 does not answer: refused", "c0 does not answer: refused"},
		"corrupt":   {all(func(s *Status) { s.Members[0].Alarms = []string{"CORRUPT"} }), "c1", "not while a member is unhealthy: c0 has the alarm CORRUPT", "c0 has the alarm CORRUPT"},
		"no leader": {all(func(s *Status) { s.Members[0].knows, s.Members[1].knows, s.Members[2].knows = 0, 0, 0 }), "", "etcd has no quorum: nothing can be compacted", "c0 is leaderless"},
		"the leader is silent": {all(func(s *Status) { s.Members[1].Error, s.Members[1].State = "refused", "" }), "c1",
			"not while a member is unhealthy: c1 does not answer: refused", ""},
	} {
		if tt.s.Leader != tt.leader {
			t.Errorf("%s: got the leader %q, want %q", name, tt.s.Leader, tt.leader)
		}
		if err := tt.s.sound(); said(err) != tt.sound {
			t.Errorf("%s: got %v, want %q", name, err, tt.sound)
		}
		if _, err := tt.s.successor(Member{}, "c0"); said(err) != tt.move {
			t.Errorf("%s: move to c0: got %v, want %q", name, err, tt.move)
		}
	}
}

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
