package attack

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// reviewedEnv is set in a run whose KTHWD_BIN is the kthwd that the review of security attacked,
// of the commit fa4bf26: the tests leave out what it does not know, such as flags, and must fail.
const reviewedEnv = "KTHWD_ATTACK_REVIEWED"

var reviewed = os.Getenv(reviewedEnv) != ""

// reproduction is what the kthwd of fa4bf26 gives away to the attack of a finding.
type reproduction struct {
	finding string
	gave    string // in a clause; or why the attack is not repeated
	test    string // that fails on it; "" where the attack is not repeated
	said    string // in what that test says, as a regular expression
	root    bool   // the attack needs two users
}

// reproductions has every finding. TestReviewed holds each row to a run of fa4bf26.
var reproductions = []reproduction{
	{"C1", "all of etcd, to read and to write, to any certificate of the cluster", "TestEtcdAnswersControllersOnly", `POST /v3/kv/range of port \d+: got 200`, false},
	{"C1", "a certificate called kubernetes, to every user that an administrator approves", "TestControllersNameIsNotSigned", `the common name kubernetes: got <nil>, want it forbidden`, false},
	{"C2", "ca-key.pem, to every writer of etcd", "TestForgedJoinGivesNothing", `answers the forged token with 200 .*, ca-key.pem in them: true`, false},
	{"H1", "the term of etcd, to a worker's heartbeats", "TestForgedRaftMessages", `50 of 50 forged heartbeats were answered, and etcd's term is 10000\d\d`, false},
	{"H2", "the audit log, to requests without credentials", "TestAnonymousPushesNoEvidenceOut", `\d+ anonymous requests have pushed an administrator's record out`, false},
	{"H2", "a record in it to each such request", "TestAnonymousRecordsAreElsewhere", `\d+ records of the attacker, \d+ bytes, are in the log of the others`, false},
	{"H3", "rights that nobody can take back, for ten years, to a copy of admin.kubeconfig", "TestClosedWhereTheGuideIsSilent", `admin.kubeconfig is of \[system:masters\], .* until 2036`, false},
	{"M1", "the keys of the cluster, to every further user of a token", "TestTokenIsGoodOnce", `another use: got 200`, false},
	{"M1", "the same on another machine than the token is for", "TestTokenIsGoodOnce", `from another machine: got 200`, true},
	{"M2", "the token, to every user of the machine that joins", "TestTokenIsGoodOnce", `the command line that is printed shows the token`, false},
	{"M3", "files of root, to the owner of the data directory", "TestRootFollowsNoLinksOfTheDirectorysOwner", `changed; before:`, true},
	{"M3", "a file, to a link in place of an audit log", "TestLinkInPlaceOfAnAuditLog", `changed; before:`, false},
	{"M3", "a directory, to a link in place of run", "TestLinkInPlaceOfTheRunDirectory", `changed; before:`, false},
	{"M4", "a data directory with keys that others can exchange", "TestDirectoryOpenToOthers", `changed; before:`, false},
	{"M5", "the environment of the process, to others of the same user", "TestMemoryIsClosed", `opens environ: <nil>`, false},
	{"M5", "the controller's files, to the load balancer", "TestUnitsKeepUsersApart", `the load balancer runs as the user "kthwd", and the controller as "kthwd"`, false},
	{"M6", "its memory, of which a core dump is a copy", "TestMemoryIsClosed", `opens mem: <nil>`, false},
	{"M6", "a core dump, by the units", "TestUnitsKeepUsersApart", `a controller that crashes leaves a core dump`, false},
	{"M7", "a profile of the whole process", "TestClosedWhereTheGuideIsSilent", `kube-controller-manager shows an administrator a profile of the process: 200`, false},
	{"M8", "a token for ten years", "TestClosedWhereTheGuideIsSilent", `a token asked for ten years lasts 8\d{4}h`, false},
	{"M9", "the status, to a worker, without a word", "TestMetricsClientsAreNamed", `with ca.pem and nothing else: <nil>; kthwd says that workers are let in: false`, false},
	{"L1", "the status, to a page of another site", "TestForeignPageReadsNothing", `/status.json asked for as rebind.attacker.test:10300: got 200`, false},
	{"L2", "the terminal, to a server that is asked", "TestForeignReportDrivesNoTerminal", `reaches the terminal`, false},
	{"L2", "the answer of kthwd status, to a process of another user", "TestStrangerIsNotBelieved", `exit code 0, want 2`, true},
	{"L3", "a read of etcd and a line in the log, to each wrong secret", "TestJoinPortHasLimits", `answers of 200 requests with a wrong secret: map\[409:200\]`, false},
	{"L4", "the socket of the balancer's upgrades, to the user who takes its name first", "TestUnitsKeepUsersApart", `the socket of upgrades has an abstract name`, false},
	{"L5", "a node's certificate with a name of the API server", "TestControllersNameIsNotSigned", `kthwd pki node \["w1" "kubernetes.default.svc"\]: got exit code 0`, false},
	{"L6", "not repeated: a lone controller still has these keys, which the guide's files are, beside the key of the CA, which can make them; a controller of several had none of them then either", "", "", false},
	{"L7", "the version, to anybody", "TestAnonymousSeesProbesOnly", `/version: got 200`, false},
	{"L8", "any address, to a Service", "TestClosedWhereTheGuideIsSilent", `a service took an address that is not its own: <nil>`, false},
	{"L9", "not repeated: the guide's flag asks for alpha APIs, and does so still", "", "", false},
	{"L10", "suites in CBC mode", "TestClosedWhereTheGuideIsSilent", `accepts a suite in CBC mode`, false},
	{"L11", "not repeated: the guide's configuration encrypts Secrets alone, and does so still", "", "", false},
	{"L12", "the values of flags, in the log", "TestClosedWhereTheGuideIsSilent", `the log has the value of a flag that may be a secret`, false},
	{"L13", "no command line, to a scanner", "TestCommandLinesAreShown", `kthwd explain kube-apiserver: exit code 2`, false},
}

// Every finding of the table in doc.go is here, with a test of that table or with the reason that
// there is none.
func TestReproductions(t *testing.T) {
	for _, row := range findings(t) {
		i := slices.IndexFunc(reproductions, func(r reproduction) bool { return r.finding == row.id })
		if i < 0 {
			t.Errorf("%s: what fa4bf26 gave away is not recorded", row.id)
			continue
		}
		for _, r := range reproductions[i:] {
			if r.finding != row.id {
				break
			}
			if r.gave == "" || r.test != "" && (!slices.Contains(row.tests, r.test) || r.said == "") {
				t.Errorf("%s: %+v is not about a test of doc.go, which has %q", row.id, r, row.tests)
			}
		}
	}
}

// TestReviewed runs the attacks on the kthwd of fa4bf26, which has its unit files beside it: each
// test must fail, and say what was given away. make test-attacks-reviewed makes both.
func TestReviewed(t *testing.T) {
	old := os.Getenv("KTHWD_REVIEWED")
	if old == "" {
		t.Skip("KTHWD_REVIEWED names no kthwd of the commit fa4bf26: make test-attacks-reviewed")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{}
	for _, r := range reproductions {
		if r.test == "" || r.root && os.Geteuid() != 0 {
			continue
		}
		if _, ran := outputs[r.test]; !ran {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+r.test+"$", "-test.v", "-test.timeout=10m")
			cmd.Env = append(os.Environ(), reviewedEnv+"=1", "KTHWD_BIN="+old, "KTHWD_REVIEWED=", "KTHWD_ATTACK_UNITS="+filepath.Dir(old), networkEnv+"=")
			out, err := cmd.CombinedOutput()
			if err == nil || cmd.ProcessState == nil {
				t.Errorf("%s passes on fa4bf26: %v", r.test, err)
			}
			outputs[r.test] = string(out)
		}
		// The lines of the test, not those of kthwd.
		said, _, _ := strings.Cut(outputs[r.test], "log of kthwd in ")
		if line := regexp.MustCompile(`.*(?:` + r.said + `).*`).FindString(said); line == "" {
			t.Errorf("%s, %s: %q is not said:\n%s", r.finding, r.test, r.said, last(outputs[r.test], 60))
		} else {
			t.Logf("%-3s %s: %.300s", r.finding, r.gave, strings.TrimSpace(line))
		}
	}
}

func last(text string, lines int) string {
	l := &kthwtest.Log{}
	_, _ = l.Write([]byte(text))
	return l.Tail(lines)
}
