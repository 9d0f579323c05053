package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime"
	utilversion "k8s.io/apimachinery/pkg/util/version"

	"kthwd/appliance/upgradecheck"
	"kthwd/appliance/upgradecheck/binary"
	"kthwd/test/kthwtest"
)

// upgradeChecked is the answer of kthwd upgrade check -o json.
type upgradeChecked struct {
	Binary  binary.Binary         `json:"binary"`
	Go      bool                  `json:"go"`
	Results []upgradecheck.Result `json:"results"`
}

func (u upgradeChecked) of(check string) upgradecheck.Result {
	i := slices.IndexFunc(u.Results, func(r upgradecheck.Result) bool { return r.Check == check })
	if i < 0 {
		return upgradecheck.Result{}
	}
	return u.Results[i]
}

// checkUpgrade runs the verb, and requires that its exit code is that of its answer.
func checkUpgrade(t *testing.T, dir string, args ...string) (u upgradeChecked) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), append([]string{"upgrade", "check", "-o", "json", "--config=", "--data-dir=" + dir}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("kthwd upgrade check: %v\n%s", err, said.String())
	}
	if err := json.Unmarshal(out, &u); err != nil {
		t.Fatalf("%v:\n%s%s", err, out, said.String())
	}
	if u.Go != (err == nil) || !u.Go && !strings.Contains(said.String(), "error: the upgrade must wait: ") {
		t.Errorf("the exit code or the error is not that of the answer: go %v, %v\n%s", u.Go, err, said.String())
	}
	return u
}

// want requires a verdict and a part of its reason.
func (u upgradeChecked) want(t *testing.T, check string, v upgradecheck.Verdict, reason string) {
	t.Helper()
	if r := u.of(check); r.Verdict != v || !strings.Contains(r.Reason, reason) {
		t.Errorf("%s: got %+v, want %s with %q", check, r, v, reason)
	}
}

// minorFrom is the version of a minor that many steps away from v.
func minorFrom(t *testing.T, v string, steps int) string {
	t.Helper()
	parsed, err := utilversion.ParseGeneric(v)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("v%d.%d.1", parsed.Major(), int(parsed.Minor())+steps)
}

// The check of an upgrade on a running controller, and without it.
func TestUpgradeCheck(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=event-ttl=2h"}})
	t.Run("versions", func(t *testing.T) { upgradeCheckVersions(t, c) })
	t.Run("files", func(t *testing.T) { upgradeCheckFiles(t, c) })
	t.Run("stored", func(t *testing.T) { upgradeCheckStored(t, c) })
	t.Run("custom", func(t *testing.T) { upgradeCheckCustom(t, c) })
	t.Run("deprecated", func(t *testing.T) { upgradeCheckDeprecated(t, c) })
	stop(t, c, syscall.SIGTERM, 0)
	t.Run("stopped", func(t *testing.T) { upgradeCheckStopped(t, c) })
}

// upgradeCheckVersions moves the record of the directory instead of the binary.
func upgradeCheckVersions(t *testing.T, c *kthwtest.Controller) {
	r := readRecord(t, c.Dir)
	t.Cleanup(func() { r.with(t, c.Dir, "members", r["members"]) })
	u := checkUpgrade(t, c.Dir)
	for _, r := range u.Results {
		if r.Check == "health" && r.Verdict == upgradecheck.Warn && (strings.Contains(r.Reason, ": the disk is slower") || strings.Contains(r.Reason, ": the disk is too slow")) {
			continue // on a machine that the tests share
		}
		if r.Verdict != upgradecheck.OK && !slices.Contains([]string{"versions", "backup"}, r.Check) {
			t.Errorf("on a new controller: %+v", r)
		}
	}
	u.want(t, "versions", upgradecheck.Warn, "nothing to upgrade")
	if got := checkUpgrade(t, c.Dir, "--strict"); got.Go {
		t.Error("--strict accepts a warning")
	}
	is := u.Binary.Kubernetes
	r.with(t, c.Dir, "kubernetes", minorFrom(t, is, -1))
	u = checkUpgrade(t, c.Dir)
	u.want(t, "versions", upgradecheck.OK, minorFrom(t, is, -1)+" to "+is)
	u.want(t, "disk", upgradecheck.OK, "there is room for the copy before Kubernetes")
	if !u.Go {
		t.Errorf("one minor up: %+v", u.Results)
	}
	r.with(t, c.Dir, "kubernetes", minorFrom(t, is, -2))
	checkUpgrade(t, c.Dir).want(t, "versions", upgradecheck.No, "skips a minor")
	r.with(t, c.Dir, "etcd", strings.TrimPrefix(minorFrom(t, u.Binary.Etcd, 1), "v"))
	checkUpgrade(t, c.Dir).want(t, "versions", upgradecheck.No, "no way back")
	if err := os.WriteFile(filepath.Join(c.Dir, "member.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	checkUpgrade(t, c.Dir).want(t, "versions", upgradecheck.No, "member.json")
}

// upgradeCheckFiles names binaries that are none, and a good one.
func upgradeCheckFiles(t *testing.T, c *kthwtest.Controller) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho '{\"kthwd\":\"v9.0.0\"}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist", script: "is no kthwd", kthwtest.Kubectl(t): "is no kthwd",
	} {
		u := checkUpgrade(t, c.Dir, "--binary="+path)
		u.want(t, "binary", upgradecheck.No, want)
		u.want(t, "stored objects", upgradecheck.Unknown, "the new binary is not usable")
	}
	good := filepath.Join(dir, "kthwd-new")
	data, err := os.ReadFile(kthwtest.Binary(t))
	if err == nil {
		err = os.WriteFile(good, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	u := checkUpgrade(t, c.Dir, "--binary="+good)
	u.want(t, "binary", upgradecheck.OK, good)
	u.want(t, "stored objects", upgradecheck.OK, "can be read")
	if os.Geteuid() == 0 {
		if err := os.Chmod(good, 0o777); err != nil {
			t.Fatal(err)
		}
		checkUpgrade(t, c.Dir, "--binary="+good).want(t, "binary", upgradecheck.No, "is not executed as root")
	}
}

// upgradeCheckStored writes objects of other versions into etcd, as API servers of others would.
func upgradeCheckStored(t *testing.T, c *kthwtest.Controller) {
	etcd := c.Etcd(t)
	put := func(key, version, kind string) {
		u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: version, Kind: kind}}
		data, err := u.Marshal()
		if err == nil {
			_, err = etcd.Put(t.Context(), "/registry/"+key, "k8s\x00"+string(data))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("internal.apiserver.k8s.io/storageversions/x", "internal.apiserver.k8s.io/v1alpha1", "StorageVersion")
	u := checkUpgrade(t, c.Dir)
	u.want(t, "alpha objects", upgradecheck.Warn, "1 storageversions.internal.apiserver.k8s.io as internal.apiserver.k8s.io/v1alpha1")
	u.want(t, "stored objects", upgradecheck.OK, "can be read")
	put("toys.k8s.io/things/default/x", "toys.k8s.io/v1alpha1", "Thing")
	put("toys.k8s.io/things/default/y", "toys.k8s.io/v1alpha1", "Thing")
	checkUpgrade(t, c.Dir).want(t, "stored objects", upgradecheck.No, "2 things.toys.k8s.io stored as toys.k8s.io/v1alpha1 cannot be read")
	for _, key := range []string{"/registry/toys.k8s.io/", "/registry/internal.apiserver.k8s.io/"} {
		if _, err := etcd.Delete(t.Context(), key, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
}

const crd = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"},"spec":{"group":"example.com","scope":"Namespaced",
"names":{"plural":"widgets","singular":"widget","kind":"Widget","listKind":"WidgetList"},"versions":[
{"name":"v1","served":true,"storage":%v,"schema":{"openAPIV3Schema":{"type":"object"}}},{"name":"v1beta1","served":%v,"storage":%v,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`

// upgradeCheckCustom has a stored version of custom resources that is no longer served.
func upgradeCheckCustom(t *testing.T, c *kthwtest.Controller) {
	file := filepath.Join(t.TempDir(), "crd.json")
	for i, text := range []string{fmt.Sprintf(crd, false, true, true), fmt.Sprintf(crd, true, false, false)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Kubectl(t, "apply", "-f", file)
		if i == 0 {
			c.Kubectl(t, "wait", "--for=condition=Established", "crd/widgets.example.com")
			checkUpgrade(t, c.Dir).want(t, "custom resources", upgradecheck.OK, "definitions: 1;")
		}
	}
	checkUpgrade(t, c.Dir).want(t, "custom resources", upgradecheck.Warn, "not served: widgets.example.com v1beta1")
	c.Kubectl(t, "delete", "crd", "widgets.example.com")
}

// upgradeCheckDeprecated has an API removed for which the audit log names a client: a record that
// no real minor makes without a removed API.
func upgradeCheckDeprecated(t *testing.T, c *kthwtest.Controller) {
	u := checkUpgrade(t, c.Dir)
	u.want(t, "deprecated APIs", upgradecheck.OK, "API servers asked: 1")
	minor := strings.TrimPrefix(strings.TrimSuffix(minorFrom(t, u.Binary.Kubernetes, 0), ".1"), "v")
	log, err := os.OpenFile(filepath.Join(c.Dir, "audit.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintf(log, `{"kind":"Event","annotations":{"k8s.io/deprecated":"true","k8s.io/removed-release":%q},"user":{"username":"bob"},"userAgent":"tool/1","objectRef":{"resource":"things","apiGroup":"toys.k8s.io","apiVersion":"v1beta1"},"requestReceivedTimestamp":%q}`+"\n",
		minor, "2999-01-01T00:00:00.000000Z")
	checkUpgrade(t, c.Dir).want(t, "deprecated APIs", upgradecheck.No, "things of toys.k8s.io/v1beta1 by bob (tool/1)")
}

// upgradeCheckStopped says what cannot be judged, and still judges flags and file.
func upgradeCheckStopped(t *testing.T, c *kthwtest.Controller) {
	u := checkUpgrade(t, c.Dir)
	for _, check := range []string{"controllers", "health", "quorum", "etcd", "drift", "deprecated APIs", "stored objects", "alpha objects", "custom resources", "backup"} {
		u.want(t, check, upgradecheck.Unknown, "kthwd is not running")
	}
	u.want(t, "configuration", upgradecheck.OK, "accepts")
	u.want(t, "certificates", upgradecheck.OK, "none ends before")
	checkUpgrade(t, c.Dir, "--kube-apiserver-arg=no-such-flag=1").want(t, "configuration", upgradecheck.No, "no-such-flag")
	for _, args := range [][]string{{"--data-dir=" + t.TempDir() + "/none"}, {"--role=lb", "--backend=127.0.0.1:1"}, {"-o", "yaml"}, {"--no-such-flag"}} {
		cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), append([]string{"upgrade", "check", "--config="}, args...)...)
		if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 {
			t.Errorf("kthwd upgrade check %v: exit code %d:\n%s", args, cmd.ProcessState.ExitCode(), out)
		}
	}
}

// On three controllers, whose kubeconfigs name a load balancer that does not run, the API server
// here is asked, and a controller that is away is named.
func TestUpgradeCheckOfThree(t *testing.T) {
	endToEnd(t, "TestUpgradeCheck, TestJudge")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	var u upgradeChecked
	until := func(what string, of *kthwtest.Controller, done func() bool) {
		t.Helper()
		kthwtest.WaitFor(t, what, soon, func() error {
			if u = checkUpgrade(t, of.Dir); done() {
				return nil
			}
			return fmt.Errorf("got %+v", u.Results)
		})
	}
	for _, c := range all[:2] { // each has to have heard of c2's version
		until("the check to allow it", c, func() bool {
			// One that has not answered yet is in no list.
			return u.Go && u.of("controllers").Verdict == upgradecheck.OK && strings.Contains(u.of("controllers").Reason, "c2 has Kubernetes ") && u.of("custom resources").Verdict == upgradecheck.OK
		})
	}
	u.want(t, "quorum", upgradecheck.OK, "one may restart")
	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	until("the check to refuse it", all[0], func() bool { return u.of("quorum").Verdict == upgradecheck.No })
	until("c2 to be named", all[1], func() bool {
		return strings.Contains(u.of("controllers").Reason, "c2 is away; it was last on Kubernetes ")
	})
	if u.Go {
		t.Errorf("without c2: %+v", u.Results)
	}
}
