package upgradecheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kthwd/appliance/etcdspace"
)

// Stored are the API objects in etcd, as the API servers have written them.
type Stored struct {
	Objects   map[Object]int
	Encrypted map[string]int // by resource: their versions cannot be read
}

// Object is a kind of stored object.
type Object struct {
	Version  string // "v1", "apps/v1"
	Kind     string
	Resource string // as part of the key: "deployments", "widgets.example.com"
	Protobuf bool   // stored in a format that built-in kinds only have
}

// The beginnings of values (apimachinery/pkg/runtime/serializer/protobuf, apiserver/pkg/storage/value).
var (
	protobufPrefix  = []byte("k8s\x00")
	encryptedPrefix = []byte("k8s:enc:")
)

// ReadStored reads every key below prefix, such as /registry, as etcdspace.Cluster.Usage does. Of a
// value only the version and the kind are read.
func ReadStored(ctx context.Context, c *etcdspace.Cluster, prefix string) (*Stored, error) {
	below := "/" + strings.Trim(prefix, "/") + "/"
	for attempt := 0; ; attempt++ {
		s := &Stored{Objects: map[Object]int{}, Encrypted: map[string]int{}}
		_, err := c.Walk(ctx, func(kv *mvccpb.KeyValue) {
			if key, found := strings.CutPrefix(string(kv.Key), below); found {
				s.add(key, kv.Value)
			}
		})
		switch {
		case err == nil:
			return s, nil
		case !errors.Is(err, rpctypes.ErrCompacted) || attempt == 3:
			return nil, err
		}
	}
}

// add counts one value; key is without the prefix.
func (s *Stored) add(key string, value []byte) {
	resource, _ := etcdspace.ResourceOf("/registry/" + key)
	if bytes.HasPrefix(value, encryptedPrefix) {
		s.Encrypted[resource]++
		return
	}
	t, protobuf := typeOf(value)
	if t.APIVersion != "" && t.Kind != "" {
		s.Objects[Object{Version: t.APIVersion, Kind: t.Kind, Resource: resource, Protobuf: protobuf}]++
	}
}

// typeOf reads the header of a stored object; it is empty if value is none.
func typeOf(value []byte) (t runtime.TypeMeta, protobuf bool) {
	if raw, found := bytes.CutPrefix(value, protobufPrefix); found {
		var u runtime.Unknown
		if u.Unmarshal(raw) == nil {
			t = u.TypeMeta
		}
		return t, true
	}
	if bytes.HasPrefix(value, []byte("{")) {
		_ = json.Unmarshal(value, &t) // what is no JSON is no object
	}
	return t, false
}

// sorted returns the objects in a fixed order.
func (s *Stored) sorted() []Object {
	return slices.SortedFunc(maps.Keys(s.Objects), func(a, b Object) int {
		return strings.Compare(a.Version+" "+a.Kind+" "+a.Resource, b.Version+" "+b.Kind+" "+b.Resource)
	})
}

// builtIn reports whether the kind is one of Kubernetes itself, and not a custom resource: by its
// format or by its group, which Kubernetes alone may use
// (https://kubernetes.io/docs/reference/using-api/#api-groups).
func (o Object) builtIn() bool {
	gv, err := schema.ParseGroupVersion(o.Version)
	return err == nil && (o.Protobuf || !strings.Contains(gv.Group, ".") || strings.HasSuffix(gv.Group, ".k8s.io"))
}

// judgeStored says which objects the new binary cannot read.
func judgeStored(in Input) Result {
	switch {
	case in.BinaryErr != nil:
		return noBinary("stored objects are")
	case in.Report == nil:
		return in.notRunning("stored objects are")
	case in.Stored == nil:
		return unknown("kthwd etcd status", "stored objects are not judged: %s", why(in.StoredErr))
	case in.Binary.Kinds == nil:
		return unknown("", "stored objects are not judged: this kthwd does not tell what it can read")
	}
	custom := in.customVersions()
	var all []Result
	for _, o := range in.Stored.sorted() {
		if in.Binary.CanRead(o.Version, o.Kind) || custom[o.Version] {
			continue
		}
		n := in.Stored.Objects[o]
		switch {
		case o.builtIn() && !in.served(o):
			all = append(all, no(in.remedy(o), "%d %s stored as %s cannot be read", n, o.Resource, o.Version))
		case o.builtIn() || in.CRDsErr != nil:
		default:
			all = append(all, warn("kthwd etcd space", "%d %s stored as %s belong to no CustomResourceDefinition", n, o.Resource, o.Version))
		}
	}
	if len(all) > 0 {
		return worst(all...)
	}
	return ok("all of %d can be read%s", in.Stored.count(), in.Stored.unread())
}

// served reports whether a CustomResourceDefinition has the group of the object: some projects of
// Kubernetes keep custom resources in its groups.
func (in Input) served(o Object) bool {
	gv, err := schema.ParseGroupVersion(o.Version)
	return err == nil && !o.Protobuf && slices.ContainsFunc(in.CRDs, func(c CRD) bool { return c.Group == gv.Group })
}

// remedy is the command for objects that the new binary cannot read: where it knows another version
// of the kind, they are written anew.
func (in Input) remedy(o Object) string {
	gv, _ := schema.ParseGroupVersion(o.Version)
	resource := o.Resource
	for version, kinds := range in.Binary.Kinds {
		if other, err := schema.ParseGroupVersion(version); err == nil && other.Group == gv.Group && slices.Contains(kinds, o.Kind) {
			return fmt.Sprintf("write them anew: kubectl get %s -A -o json | kubectl replace -f -; if they stay in %s, delete them", resource, gv.Version)
		}
	}
	return fmt.Sprintf("export and delete them: kubectl get %s -A -o yaml; kubectl delete %s -A --all", resource, resource)
}

func (s *Stored) count() (n int) {
	for _, of := range s.Objects {
		n += of
	}
	return n
}

// unread names the resources that are encrypted.
func (s *Stored) unread() string {
	var all []string
	for _, resource := range slices.Sorted(maps.Keys(s.Encrypted)) {
		all = append(all, fmt.Sprintf("%d %s", s.Encrypted[resource], resource))
	}
	if len(all) == 0 {
		return ""
	}
	return ", but not the encrypted ones: " + list(all)
}

var alphaVersion = regexp.MustCompile(`^v[0-9]+alpha[0-9]+$`)

// judgeAlpha counts the objects that are stored in an alpha version, which any later minor may be
// unable to read.
func judgeAlpha(in Input) Result {
	switch {
	case in.Report == nil:
		return in.notRunning("alpha objects are")
	case in.Stored == nil:
		return unknown("kthwd etcd status", "alpha objects are not judged: %s", why(in.StoredErr))
	}
	var all, resources []string
	for _, o := range in.Stored.sorted() {
		gv, err := schema.ParseGroupVersion(o.Version)
		if err != nil || !alphaVersion.MatchString(gv.Version) || !o.builtIn() || in.served(o) {
			continue
		}
		all = append(all, fmt.Sprintf("%d %s as %s", in.Stored.Objects[o], o.Resource, o.Version))
		resources = append(resources, o.Resource)
	}
	if len(all) == 0 {
		return ok("none is stored")
	}
	return warn("keep their manifests: kubectl get "+strings.Join(resources, ",")+" -A -o yaml", "a later minor may not read them: %s", list(all))
}

// CRD is a CustomResourceDefinition.
type CRD struct {
	Name     string
	Group    string
	Versions map[string]bool // whether each is served
	Stored   []string        // status.storedVersions
}

// customVersions are the versions of all custom resources, as objects have them.
func (in Input) customVersions() map[string]bool {
	all := map[string]bool{}
	for _, c := range in.CRDs {
		for v := range c.Versions {
			all[c.Group+"/"+v] = true
		}
	}
	return all
}

// judgeCRDs finds versions in which objects may be stored and that are not served.
func judgeCRDs(in Input) Result {
	switch {
	case in.Report == nil:
		return in.notRunning("custom resources are")
	case in.CRDsErr != nil:
		return unknown("kthwd kubectl get crds", "custom resources are not judged: %s", why(in.CRDsErr))
	}
	var gone, notServed []string
	for _, c := range in.CRDs {
		for _, v := range c.Stored {
			switch served, there := c.Versions[v]; {
			case !there:
				gone = append(gone, c.Name+" "+v)
			case !served:
				notServed = append(notServed, c.Name+" "+v)
			}
		}
	}
	slices.Sort(gone)
	slices.Sort(notServed)
	const rewrite = "write the objects anew, then remove the version from status.storedVersions: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/"
	switch {
	case len(gone) > 0:
		return no(rewrite, "objects may be stored in versions that no longer exist: %s", list(gone))
	case len(notServed) > 0:
		return warn(rewrite, "objects may be stored in versions that are not served: %s", list(notServed))
	}
	return ok("definitions: %d; every stored version is served", len(in.CRDs))
}
