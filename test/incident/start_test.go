package incident

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// object is an object of the API.
type object struct {
	APIVersion, Kind string
	Metadata         struct {
		Namespace, Name, UID string
		Labels               map[string]string
	}
}

func (o object) String() string {
	return strings.Trim(o.Kind+" "+o.Metadata.Namespace+"/"+o.Metadata.Name, " /")
}

// startRow is a row of the table "Objects that a start makes" in docs/tutorial-differences.md.
type startRow struct {
	objects string     // the begin of its first cell
	kinds   string     // with spaces between
	names   string     // if not all of the kind
	label   string     // likewise
	deleted [][]string // examples: the words after kubectl delete; none: another test has one
	refused bool
	said    string // the object in the finding bootstrap_restored
}

// in reports whether an object belongs to the row.
func (r startRow) in(o object) bool {
	return slices.Contains(strings.Fields(r.kinds), o.Kind) &&
		(r.names == "" || slices.ContainsFunc(strings.Fields(r.names), func(n string) bool { ok, _ := filepath.Match(n, o.Metadata.Name); return ok })) &&
		(r.label == "" || o.Metadata.Labels["kube-aggregator.kubernetes.io/automanaged"] == r.label)
}

var startRows = []startRow{
	{objects: "ClusterRoles, ClusterRoleBindings, Roles", kinds: "ClusterRole ClusterRoleBinding Role RoleBinding",
		deleted: [][]string{{"clusterrole", "view"}, {"role", "-n", "kube-system", "system:controller:token-cleaner"}}, said: "clusterrole view"},
	{objects: "PriorityClasses", kinds: "PriorityClass", names: "system-*-critical",
		deleted: [][]string{{"priorityclass", "system-node-critical"}, {"priorityclass", "system-cluster-critical"}}, refused: true},
	{objects: "PriorityClasses", kinds: "PriorityClass", deleted: [][]string{{"--raw=/apis/scheduling.k8s.io/v1/priorityclasses"}}, said: "priorityclass system-node-critical"},
	{objects: "FlowSchemas", kinds: "FlowSchema PriorityLevelConfiguration",
		deleted: [][]string{{"flowschema", "probes"}, {"flowschema", "catch-all"}, {"prioritylevelconfiguration", "workload-low"}}},
	{objects: "Namespaces", kinds: "Namespace", names: "default kube-system kube-public", refused: true,
		deleted: [][]string{{"namespace", "default"}, {"namespace", "kube-system"}, {"namespace", "kube-public"}}},
	{objects: "Namespace `kube-node-lease`", kinds: "Namespace", names: "kube-node-lease", deleted: [][]string{{"namespace", "kube-node-lease"}}},
	{objects: "IPAddresses", kinds: "IPAddress", deleted: [][]string{{"ipaddress", "10.32.0.1"}}},
	{objects: "Service `kubernetes`", kinds: "Service Endpoints EndpointSlice", names: "kubernetes",
		deleted: [][]string{{"service", "kubernetes"}, {"endpointslice", "kubernetes"}, {"endpoints", "kubernetes"}}},
	{objects: "ServiceCIDR", kinds: "ServiceCIDR", names: "kubernetes"}, // see rangeOfServices
	{objects: "ConfigMap `extension", kinds: "ConfigMap", names: "extension-apiserver-authentication",
		deleted: [][]string{{"configmap", "-n", "kube-system", "extension-apiserver-authentication"}}},
	{objects: "ConfigMap `kube-apiserver-legacy", kinds: "ConfigMap", names: "kube-apiserver-legacy-service-account-token-tracking",
		deleted: [][]string{{"configmap", "-n", "kube-system", "kube-apiserver-legacy-service-account-token-tracking"}}},
	{objects: "ConfigMaps `kube-root-ca.crt`", kinds: "ConfigMap ServiceAccount", names: "kube-root-ca.crt default",
		deleted: [][]string{{"configmap", "kube-root-ca.crt"}, {"serviceaccount", "default"}}},
	{objects: "ClusterTrustBundle", kinds: "ClusterTrustBundle", names: "kubernetes.io:kube-apiserver-serving:*", deleted: [][]string{{"clustertrustbundle", "--all"}}},
	{objects: "ServiceAccounts of the controllers", kinds: "ServiceAccount",
		deleted: [][]string{{"serviceaccount", "-n", "kube-system", "generic-garbage-collector"}}}, // asks for all resources each 30 s
	{objects: "Lease `apiserver", kinds: "Lease", names: "apiserver-*", deleted: [][]string{{"lease", "-n", "kube-system", "-l", "apiserver.kubernetes.io/identity=kube-apiserver"}}},
	{objects: "Leases `kube-controller-manager`", kinds: "Lease", names: "kube-controller-manager kube-scheduler",
		deleted: [][]string{{"lease", "-n", "kube-system", "kube-scheduler"}, {"lease", "-n", "kube-system", "kube-controller-manager"}}},
	{objects: "APIServices of the API server's", kinds: "APIService", label: "onstart",
		deleted: [][]string{{"apiservice", "v1.apps"}, {"apiservice", "v1."}, {"apiservice", "v1.scheduling.k8s.io"}}, said: "apiservice v1.apps"},
	{objects: "APIServices of CRDs", kinds: "APIService", label: "true", deleted: [][]string{{"apiservice", "v1.example.com"}}},
}

const ofCRD = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
`

// Each object that a cluster has after its first start is in a row of the table of the docs.
// When one of the row is deleted while kthwd runs, it comes back, or its loss is said.
func TestObjectsOfTheStart(t *testing.T) {
	kthwtest.Turn(t, 1)
	docs, err := os.ReadFile(filepath.Join(kthwtest.Root(), "docs", "tutorial-differences.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := kthwtest.Start(t, kthwtest.Options{})
	applyText(t, c, ofCRD)
	for _, lease := range []string{"kube-controller-manager", "kube-scheduler"} {
		kthwtest.WaitFor(t, "lease "+lease, soon, func() error { _, err := c.TryKubectl(t, "get", "lease", "-n", "kube-system", lease); return err })
	}
	kthwtest.WaitFor(t, "the CRD's APIService", soon, func() error { _, err := c.TryKubectl(t, "get", "apiservice", "v1.example.com"); return err })
	everyObjectHasARow(t, c)
	stop(t, c)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports}) // one that has not just made the ConfigMap of tracked tokens
	kthwtest.WaitFor(t, "kube-controller-manager", soon, func() error {
		_, err := c.TryKubectl(t, "create", "serviceaccount", "again")
		return err
	})
	c.Kubectl(t, "delete", "serviceaccount", "again")

	t.Run("range of Services", func(t *testing.T) { rangeOfServices(t, c) })
	before, err := rowsOf(t, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range startRows {
		if !strings.Contains(string(docs), "\n| "+row.objects) {
			t.Errorf("docs/tutorial-differences.md has no row for %s", row.objects)
		}
		for _, words := range row.deleted {
			out, err := c.TryKubectl(t, deletion(words)...)
			gone := strings.Contains(out, "(NotFound)") // with one before it, as the endpoints of a Service
			if refused := err != nil && !gone; refused != row.refused {
				t.Errorf("kubectl delete %s: refused: %v, want %v: %s", strings.Join(words, " "), refused, row.refused, out)
			}
		}
	}
	kthwtest.WaitFor(t, "all that was deleted", 2*soon, func() error {
		after, err := rowsOf(t, c)
		if err != nil {
			return err
		}
		var missing []error
		for i, row := range startRows {
			for _, words := range row.deleted {
				if !row.refused {
					missing = append(missing, isAnother(words, before[i], after[i]))
				}
			}
		}
		return errors.Join(missing...)
	})
	for _, row := range startRows {
		if row.said != "" && !strings.Contains(c.Log.String(), `object="`+row.said+`"`) {
			t.Errorf("the log does not say %s", row.said)
		}
	}
	finding(t, c, "bootstrap_restored")
	c.Kubectl(t, "get", "deployments,pods,serviceaccounts,priorityclasses")
	everyObjectHasARow(t, c)
	stop(t, c)
}

// everyObject returns all objects of the cluster but the events.
func everyObject(t *testing.T, c *kthwtest.Controller) (all []object, err error) {
	t.Helper()
	names, err := c.TryKubectl(t, "api-resources", "--verbs=list,delete", "-o", "name")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, names)
	}
	kinds := slices.DeleteFunc(strings.Fields(names), func(n string) bool { return n == "events" || n == "events.events.k8s.io" })
	out, err := c.TryKubectl(t, "get", strings.Join(kinds, ","), "--all-namespaces", "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var list struct{ Items []object }
	_, document, _ := strings.Cut(out, "{") // after the warning that Endpoints are deprecated
	return list.Items, json.Unmarshal([]byte("{"+document), &list)
}

// everyObjectHasARow requires a row of the table for each object, and an object for each row.
func everyObjectHasARow(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	all, err := everyObject(t, c)
	if err != nil {
		t.Fatal(err)
	}
	filled := map[string]bool{}
	for _, o := range all {
		i := slices.IndexFunc(startRows, func(r startRow) bool { return r.in(o) })
		if i >= 0 {
			filled[startRows[i].objects] = true
		} else if o.Kind != "CustomResourceDefinition" { // of this test
			t.Errorf("%s (%s) is in no row", o, o.APIVersion)
		}
	}
	for _, row := range startRows {
		if !filled[row.objects] {
			t.Errorf("no object for the row %s", row.objects)
		}
	}
}

// rowsOf returns the objects of each row by name, with their UIDs.
func rowsOf(t *testing.T, c *kthwtest.Controller) ([]map[string]object, error) {
	t.Helper()
	rows := make([]map[string]object, len(startRows))
	for i := range rows {
		rows[i] = map[string]object{}
	}
	all, err := everyObject(t, c)
	for _, o := range all {
		for i, r := range startRows {
			if r.in(o) {
				rows[i][o.String()] = o
			}
		}
	}
	return rows, err
}

// deletion returns the words of kubectl.
func deletion(words []string) []string {
	if strings.HasPrefix(words[0], "--raw=") {
		return append([]string{"delete"}, words...)
	}
	return append([]string{"delete", "--wait=false"}, words...)
}

// isAnother requires all objects of a row to be there, and those that kubectl delete was told to
// delete by these words to be others than before.
func isAnother(words []string, before, after map[string]object) error {
	if len(before) == 0 {
		return fmt.Errorf("nothing was there for kubectl delete %s", strings.Join(words, " "))
	}
	namespace := "default"
	if i := slices.Index(words, "-n"); i >= 0 {
		namespace = words[i+1]
	}
	named, others := 0, 0
	for name, old := range before {
		now, ok := after[name]
		if !ok {
			return fmt.Errorf("%s is missing", name)
		}
		byName := old.Metadata.Name == words[len(words)-1] && strings.EqualFold(old.Kind, words[0]) && slices.Contains([]string{"", namespace}, old.Metadata.Namespace)
		if byName && now.Metadata.UID == old.Metadata.UID {
			return fmt.Errorf("%s is still the old one", name)
		}
		if byName {
			named++
		}
		if now.Metadata.UID != old.Metadata.UID {
			others++
		}
	}
	if named == 0 && others == 0 {
		return fmt.Errorf("after kubectl delete %s all are still the old ones", strings.Join(words, " "))
	}
	return nil
}

// The range of Services cannot be deleted while a Service has an address of it, as kubernetes
// always has; it hangs, and no Service gets an address. That is said, with the remedy.
func rangeOfServices(t *testing.T, c *kthwtest.Controller) {
	c.Kubectl(t, "create", "service", "clusterip", "before", "--tcp=80")
	c.Kubectl(t, "delete", "servicecidr", "kubernetes", "--wait=false")
	f := finding(t, c, "service_range_deleted", "ServiceCIDR kubernetes", "no new Service gets an address")
	if out, err := c.TryKubectl(t, "create", "service", "clusterip", "meanwhile", "--tcp=80"); err == nil {
		t.Errorf("a Service meanwhile: %s", out)
	}
	typeCommand(t, f.Do)
	noFinding(t, c, "service_range_deleted")
	kthwtest.WaitFor(t, "an address for a Service", soon, func() error {
		_, err := c.TryKubectl(t, "create", "service", "clusterip", "after", "--tcp=80")
		return err
	})
	c.Kubectl(t, "delete", "service", "before", "after")
}
