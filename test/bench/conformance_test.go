package bench

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/test/conformance/testdata"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/fakenode"
	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const (
	conformanceList  = "testdata/conformance.txt"
	conformanceNodes = 2   // as many as the suite demands
	conformanceProcs = "3" // of the suite on each side; its tests wait more than they compute
	conformanceLimit = 75 * time.Minute
)

// outcome is how a test ended on one side.
type outcome struct {
	result string // a word of Ginkgo's, such as passed, failed, skipped; empty if it has not run
	why    string
	took   time.Duration
}

func (o outcome) String() string {
	if o.result == "" {
		return "not run"
	}
	return o.result
}

// TestConformance runs Kubernetes' conformance tests that need no kubelet against the four programs and
// kthwd, at the same time: the tests that the four programs pass, kthwd must pass.
func TestConformance(t *testing.T) {
	dir := os.Getenv("KTHWD_CONFORMANCE")
	if dir == "" {
		t.Skip("needs Kubernetes' own tests, which take minutes to compile: make test-conformance")
	}
	names := conformanceTests(t, "run")
	if focus := os.Getenv("KTHWD_CONFORMANCE_FOCUS"); focus != "" {
		re, err := regexp.Compile(focus)
		if err != nil {
			t.Fatal(err)
		}
		if names = slices.DeleteFunc(names, func(name string) bool { return !re.MatchString(name) }); len(names) == 0 {
			t.Fatalf("no test in %s matches %q", conformanceList, focus)
		}
	}
	b := newBench(t)
	seed := strconv.FormatInt(time.Now().Unix(), 10) // the same order on both sides
	var results [2]map[string]outcome
	var took [2]time.Duration
	t.Run("sides", func(t *testing.T) {
		for _, s := range []side{separate, kthwd} {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				results[s], took[s] = b.conformance(t, s, dir, seed, names)
			})
		}
	})
	if results[separate] == nil || results[kthwd] == nil {
		return
	}
	if err := writeOutcomes(filepath.Join(dir, "results.txt"), names, results[separate], results[kthwd]); err != nil {
		t.Error(err)
	}
	writeConformance(os.Stdout, names, results, took)
	for _, problem := range compareConformance(names, results[separate], results[kthwd]) {
		t.Error(problem)
	}
}

// conformance runs the tests against a new control plane, whose nodes and pods are only objects.
func (b *bench) conformance(t *testing.T, s side, dir, seed string, names []string) (map[string]outcome, time.Duration) {
	t.Helper()
	p := b.newPlane(t, s, filepath.Join(b.dir, "conformance-"+s.String()))
	p.start(t)
	p.awaitReady(t)
	stop := p.startNodes(t)
	defer stop()
	reports := filepath.Join(dir, s.String())
	if err := errors.Join(os.RemoveAll(reports), os.MkdirAll(reports, 0o755)); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	ended := p.runSuite(t, dir, reports, seed, names)
	took := time.Since(begun)
	results, broken, err := readOutcomes(filepath.Join(reports, "junit_01.xml"))
	if err != nil || len(results) == 0 {
		t.Fatalf("no test has run: %v, %v, %v, see %s", ended, err, broken, reports)
	}
	for _, what := range broken {
		t.Errorf("%s, see %s", what, reports)
	}
	stop()
	p.stop(t)
	return results, took
}

// startNodes creates the nodes, waits until pods can be bound to them, and returns the end of them.
func (p *plane) startNodes(t *testing.T) (stop func()) {
	t.Helper()
	client := p.clients(t, 1)[0]
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	p.awaitServiceAccount(t, client)
	nodes, err := fakenode.Create(t.Context(), client, conformanceNodes, version.GitVersion)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nodes.Run(ctx)
	}()
	kthwtest.WaitFor(t, "nodes without taints", kthwtest.Soon, func() error {
		list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		for i := range list.Items {
			if n := &list.Items[i]; len(n.Spec.Taints) > 0 {
				err = fmt.Errorf("%s has %v", n.Name, n.Spec.Taints)
			}
		}
		return err
	})
	return func() { cancel(); <-ended }
}

// runSuite runs the tests with these names in several processes, as upstream's hack/ginkgo-e2e.sh does.
// Its error says that a test has failed or that none has run: the report says which.
func (p *plane) runSuite(t *testing.T, dir, reports, seed string, names []string) error {
	t.Helper()
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	log, err := os.Create(filepath.Join(reports, "log.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "ginkgo"), "--procs="+conformanceProcs, "--seed="+seed, "--no-color", "--silence-skips",
		"--timeout="+conformanceLimit.String(), "--focus=("+strings.Join(quoted, "|")+")$", filepath.Join(dir, "e2e.test"), "--",
		"--kubeconfig="+p.layout.Kubeconfig(pki.NameSuperAdmin), "--provider=skeleton", "--kubectl-path="+kthwtest.Kubectl(t),
		"--report-dir="+reports, "--e2e-output-dir="+reports, "--disable-log-dump",
		// The suite waits for no node and for no pod of kube-system: nothing runs there.
		"--allowed-not-ready-nodes=-1", "--minStartupPods=-1")
	cmd.Dir = reports
	cmd.Env = append(os.Environ(), "HOME="+reports) // kubectl's cache
	cmd.Stdout, cmd.Stderr = log, log
	// Ginkgo's processes are in its group, which spawn makes; they write the report when they are asked to end.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := spawn(cmd); err != nil {
		t.Fatal(err)
	}
	return cmd.Wait()
}

// conformanceTests are the names of the tests with this use, of all if use is empty.
func conformanceTests(t *testing.T, use string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(conformanceList)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		word, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "" || word == "#":
		case word != "run" && word != "container":
			t.Errorf("%s: no use %q", conformanceList, word)
		case use == "" || use == word:
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

// TestConformanceList requires the list to have each conformance test of the Kubernetes in go.mod, so
// that new ones are noticed when that moves.
func TestConformanceList(t *testing.T) {
	data, err := testdata.GetConformanceTestdataFS().ReadTestFile("test/conformance/testdata/conformance.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []struct{ Codename string }
	if err := yaml.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	listed, upstream := conformanceTests(t, ""), make([]string, 0, len(all))
	for _, test := range all {
		upstream = append(upstream, test.Codename)
		if !slices.Contains(listed, test.Codename) {
			t.Errorf("%s lacks this test of Kubernetes: %s", conformanceList, test.Codename)
		}
	}
	for i, name := range listed {
		if !slices.Contains(upstream, name) {
			t.Errorf("%s: Kubernetes has no conformance test %s", conformanceList, name)
		}
		if slices.Contains(listed[:i], name) {
			t.Errorf("%s: twice: %s", conformanceList, name)
		}
	}
	if len(upstream) < 400 {
		t.Errorf("Kubernetes has %d conformance tests, want hundreds", len(upstream))
	}
}

// readOutcomes reads the JUnit report: the tests that were chosen of all that the suite has, and the
// steps before and after them that are broken.
func readOutcomes(file string) (all map[string]outcome, broken []string, err error) {
	type problem struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	var report struct {
		Cases []struct {
			Name    string   `xml:"name,attr"`
			Status  string   `xml:"status,attr"`
			Time    float64  `xml:"time,attr"`
			Skipped *problem `xml:"skipped"`
			Failure *problem `xml:"failure"`
			Error   *problem `xml:"error"`
		} `xml:"testsuite>testcase"`
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = xml.Unmarshal(data, &report)
	}
	if err != nil {
		return nil, nil, err
	}
	all = map[string]outcome{}
	for _, c := range report.Cases {
		name, isTest := strings.CutPrefix(c.Name, "[It] ") // others are named by their kind: [BeforeSuite]
		o := outcome{result: c.Status, took: time.Duration(c.Time * float64(time.Second))}
		for _, p := range []*problem{c.Skipped, c.Failure, c.Error} {
			if p != nil {
				o.why = firstLines(p.Message+p.Text, 3)
			}
		}
		switch {
		case isTest && (c.Skipped == nil || strings.HasPrefix(c.Skipped.Message, "skipped - ")):
			all[name] = o
		case !isTest && (c.Failure != nil || c.Error != nil):
			broken = append(broken, name+": "+o.why)
		}
	}
	return all, broken, nil
}

func firstLines(text string, n int) string {
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })
	return strings.Join(lines[:min(n, len(lines))], "; ")
}

// compareConformance says for which tests kthwd falls short of the four programs, and which have not run.
func compareConformance(names []string, theirs, ours map[string]outcome) (problems []string) {
	for _, name := range names {
		switch their, our := theirs[name], ours[name]; {
		case their.result == "passed" && our.result != "passed":
			problems = append(problems, fmt.Sprintf("%s: the four programs pass, kthwd: %v: %s", name, our, our.why))
		case their.result == "":
			problems = append(problems, fmt.Sprintf("%s: has not run on the four programs", name))
		case our.result == "":
			problems = append(problems, fmt.Sprintf("%s: has not run on kthwd", name))
		}
	}
	return problems
}

// TestCompareConformance requires a test that only the four programs pass to be a problem, and one that
// neither passes not to be one.
func TestCompareConformance(t *testing.T) {
	passed, failed, skipped := outcome{result: "passed"}, outcome{result: "failed", why: "timed out"}, outcome{result: "skipped"}
	for _, tt := range []struct {
		name         string
		theirs, ours map[string]outcome
		want         string
	}{
		{"both pass", map[string]outcome{"a": passed}, map[string]outcome{"a": passed}, ""},
		{"only kthwd passes", map[string]outcome{"a": failed}, map[string]outcome{"a": passed}, ""},
		{"neither passes", map[string]outcome{"a": failed}, map[string]outcome{"a": failed}, ""},
		{"only the four programs pass", map[string]outcome{"a": passed}, map[string]outcome{"a": failed}, "a: the four programs pass, kthwd: failed: timed out"},
		{"kthwd skips", map[string]outcome{"a": passed}, map[string]outcome{"a": skipped}, "a: the four programs pass, kthwd: skipped: "},
		{"not run on kthwd", map[string]outcome{"a": passed}, nil, "a: the four programs pass, kthwd: not run: "},
		{"both skip", map[string]outcome{"a": skipped}, map[string]outcome{"a": skipped}, ""},
		{"run on kthwd alone", nil, map[string]outcome{"a": passed}, "a: has not run on the four programs"},
		{"failed before kthwd's", map[string]outcome{"a": failed}, nil, "a: has not run on kthwd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(compareConformance([]string{"a"}, tt.theirs, tt.ours), "\n"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// writeOutcomes writes a line for each test: its end on the four programs, on kthwd, and its name.
func writeOutcomes(file string, names []string, theirs, ours map[string]outcome) error {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "# four programs\t\tkthwd\t\ttest")
	for _, name := range names {
		fmt.Fprintf(w, "%v\t%v\t%v\t%v\t%s\n", theirs[name], theirs[name].took.Round(time.Second), ours[name], ours[name].took.Round(time.Second), name)
	}
	w.Flush()
	return os.WriteFile(file, []byte(text.String()), 0o644)
}

// writeConformance prints the sums of each special interest group, and each test that does not pass on both sides.
func writeConformance(out io.Writer, names []string, results [2]map[string]outcome, took [2]time.Duration) {
	count := func(s side, group, result string) (n int) {
		for _, name := range names {
			if strings.HasPrefix(name, group) && results[s][name].result == result {
				n++
			}
		}
		return n
	}
	var groups []string
	for _, name := range names {
		group, _, _ := strings.Cut(name, "]")
		if !slices.Contains(groups, group+"]") {
			groups = append(groups, group+"]")
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\ngroup\ttests\tfour programs: passed\tfailed\tskipped\tkthwd: passed\tfailed\tskipped")
	for _, group := range append(groups, "") {
		tests := 0
		for _, name := range names {
			if strings.HasPrefix(name, group) {
				tests++
			}
		}
		title := strings.Trim(group, "[]")
		if group == "" {
			title = "all"
		}
		fmt.Fprintf(w, "%s\t%d", title, tests)
		for _, s := range []side{separate, kthwd} {
			passed, skipped := count(s, group, "passed"), count(s, group, "skipped")
			fmt.Fprintf(w, "\t%d\t%d\t%d", passed, tests-passed-skipped, skipped)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	for _, name := range names {
		if their, our := results[separate][name], results[kthwd][name]; their.result != "passed" || our.result != "passed" {
			fmt.Fprintf(out, "%s\n    four programs: %v %s\n    kthwd: %v %s\n", name, their, their.why, our, our.why)
		}
	}
	fmt.Fprintf(out, "four programs %v, kthwd %v, ratio %.2f\n\n", took[separate].Round(time.Second), took[kthwd].Round(time.Second), took[kthwd].Seconds()/took[separate].Seconds())
}
