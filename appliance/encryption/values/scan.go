// Package values looks at the values in etcd that an encryption configuration is about: with which key
// each was written, whether a configuration opens it, and writes them anew with another key.
//
// Values are rewritten in etcd directly, each by compare-and-swap, and not through the API: no
// webhook, no conversion and no quota is in the way, and nothing but the resourceVersion of an object
// changes.
package values

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"kthwd/appliance/encryption/keyfile"
)

const (
	page       = 100 // keys in one read, so that no other request waits
	kmsSamples = 5   // values of a key server that are opened to try a file
	named      = 3   // keys in an error
)

// places are built-in resources that do not lie at their own name below the storage prefix
// (k8s.io/kubernetes/pkg/kubeapiserver/default_storage_factory_builder.go).
var places = map[string]string{"replicationcontrollers": "controllers", "endpoints": "services/endpoints", "nodes": "minions", "services": "services/specs", "ingresses": "ingress"}

// past are places below the storage prefix that no encryption configuration reaches, whatever it
// names. The API server keeps its own records there, through a storage factory without transformers
// (k8s.io/kubernetes/pkg/registry/core/rest/storage_core.go, newServiceIPAllocators;
// pkg/controlplane/instance.go, createLeaseReconciler; pkg/controlplane/apiserver/peer.go): it cannot
// read a value there that has a key, and does not start with one.
var past = []string{"ranges/", "masterleases/", "peerserverleases/"}

// Stored counts the values in etcd.
type Stored struct {
	Keys  map[string]int `json:"keys"`  // encrypted ones, by "secretbox key1"
	Plain int            `json:"plain"` // not encrypted, of resources that the file encrypts
}

// Values is the number of all of them.
func (s Stored) Values() (n int) {
	for _, one := range s.Keys {
		n += one
	}
	return n + s.Plain
}

func (s Stored) String() string {
	if len(s.Keys) == 0 && s.Plain == 0 {
		return "no value"
	}
	var all []string
	for _, key := range slices.Sorted(maps.Keys(s.Keys)) {
		all = append(all, fmt.Sprintf("%s %d", key, s.Keys[key]))
	}
	return strings.Join(append(all, fmt.Sprintf("plain %d", s.Plain)), "   ")
}

// Walk calls fn with each value below prefix, in the order of their keys.
func Walk(ctx context.Context, client *clientv3.Client, prefix string, fn func(*mvccpb.KeyValue) error) error {
	next, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		answer, err := client.Get(ctx, next, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return &NoAnswer{"read etcd", err}
		}
		for _, kv := range answer.Kvs {
			if err := fn(kv); err != nil {
				return err
			}
		}
		if !answer.More || len(answer.Kvs) == 0 {
			return nil
		}
		next = string(answer.Kvs[len(answer.Kvs)-1].Key) + "\x00"
	}
}

// NoAnswer is a request that etcd has not answered, as while it elects a leader.
type NoAnswer struct {
	Request string
	Err     error
}

func (n *NoAnswer) Error() string { return n.Request + ": " + n.Err.Error() }

func (n *NoAnswer) Unwrap() error { return n.Err }

// splitStored splits the prefix off an encrypted value: "k8s:enc:secretbox:v1:key1:".
func splitStored(data []byte) (prefix string, ok bool) {
	if !bytes.HasPrefix(data, []byte(keyfile.StoredPrefix)) {
		return "", false
	}
	at := len(keyfile.StoredPrefix)
	for range 3 { // provider, version, name
		i := bytes.IndexByte(data[at:], ':')
		if i < 0 {
			return "", false
		}
		at += i + 1
	}
	return string(data[:at]), true
}

// KeyName is the key of a prefix, for people: "secretbox key1".
func KeyName(prefix string) string {
	parts := strings.Split(strings.TrimPrefix(prefix, keyfile.StoredPrefix), ":")
	if len(parts) < 3 {
		return prefix
	}
	return parts[0] + " " + parts[2]
}

// Reader opens values with the keys of a configuration.
type Reader struct {
	Root  string // the storage prefix, with a slash at its end
	Keys  map[schema.GroupResource]value.Transformer
	Plain []schema.GroupResource // which are not encrypted on purpose
}

// reaches reports whether the API server asks its encryption configuration about a key in etcd.
func (r Reader) reaches(key string) bool {
	path := strings.TrimPrefix(key, r.Root)
	return !slices.ContainsFunc(past, func(place string) bool { return strings.HasPrefix(path, place) })
}

// of lists the transformers that may belong to a key in etcd, the most certain first. It
// does not know the group of a built-in resource.
func (r Reader) of(key string) (all []value.Transformer) {
	if !r.reaches(key) {
		return nil
	}
	path := strings.TrimPrefix(key, r.Root)
	first, rest, _ := strings.Cut(path, "/")
	second, _, _ := strings.Cut(rest, "/")
	name, builtIn := first, true
	for resource, place := range places {
		if first == place || path == place || strings.HasPrefix(path, place+"/") {
			name = resource
		}
	}
	if strings.Contains(first, ".") { // a custom resource: its group has a dot
		if t := r.Keys[schema.GroupResource{Group: first, Resource: second}]; t != nil {
			return []value.Transformer{t}
		}
		if t := r.Keys[schema.GroupResource{Group: first, Resource: "*"}]; t != nil {
			return []value.Transformer{t}
		}
		builtIn = false
	}
	sorted := slices.SortedFunc(maps.Keys(r.Keys), func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) })
	for _, exact := range []bool{true, false} {
		for _, gr := range sorted {
			switch {
			case exact && builtIn && gr.Resource == name && !isCustom(gr.Group),
				!exact && builtIn && gr.Resource == "*" && gr.Group != "*" && !isCustom(gr.Group):
				all = append(all, r.Keys[gr])
			}
		}
		if exact && len(all) > 0 {
			return all
		}
	}
	if t := r.Keys[schema.GroupResource{Group: "*", Resource: "*"}]; t != nil {
		all = append(all, t)
	}
	return all
}

// isCustom reports whether a group can only be of custom resources.
func isCustom(group string) bool {
	return strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io")
}

// errNoResource means that the file does not name the resource of an encrypted value.
var errNoResource = errors.New("the file does not name this resource")

// Open decrypts a value; by is the transformer that has opened it.
func (r Reader) Open(ctx context.Context, key string, data []byte) (plain []byte, by value.Transformer, err error) {
	all := r.of(key)
	if _, encrypted := splitStored(data); !encrypted {
		t, _ := r.plainBy(key, data)
		all = []value.Transformer{t}
	}
	err = errNoResource
	for _, t := range slices.DeleteFunc(all, func(t value.Transformer) bool { return t == nil }) {
		if plain, _, err = t.TransformFromStorage(ctx, data, value.DefaultContext(key)); err == nil {
			return plain, t, nil
		}
	}
	return nil, nil, err // the error of a cipher quotes neither key nor value
}

// wildcards reports whether the file names resources with a wildcard.
func (r Reader) wildcards() bool {
	for gr := range r.Keys {
		if gr.Resource == "*" {
			return true
		}
	}
	return false
}

// plainBy returns the transformer with which the API server reads a value that has no key, and
// whether it would write it with a key. It returns nil if the file does not name the resource, or
// does not reach it: then the value stays without a key. The group of a built-in resource is in the value.
// It decides as transformerFromOverrides does (apiserver/pkg/server/options/encryptionconfig/config.go).
func (r Reader) plainBy(key string, data []byte) (by value.Transformer, encrypts bool) {
	for _, gr := range r.resourcesOf(key, data) {
		if t := r.Keys[gr]; t != nil {
			return t, !slices.Contains(r.Plain, gr)
		}
	}
	return nil, false
}

// resourcesOf lists what an encryption configuration may call the resource of a key, the most
// certain first.
func (r Reader) resourcesOf(key string, data []byte) []schema.GroupResource {
	if !r.reaches(key) {
		return nil
	}
	path := strings.TrimPrefix(key, r.Root)
	first, rest, _ := strings.Cut(path, "/")
	everything := schema.GroupResource{Group: "*", Resource: "*"}
	if strings.Contains(first, ".") { // a custom resource, or one of an API that is served like one
		second, _, _ := strings.Cut(rest, "/")
		return []schema.GroupResource{{Group: first, Resource: second}, {Group: first, Resource: "*"}, everything}
	}
	name := first
	for resource, place := range places {
		if first == place || strings.HasPrefix(path, place+"/") {
			name = resource
		}
	}
	var all []schema.GroupResource
	for gr := range r.Keys { // whatever its group: no two built-in resources lie at one place
		if gr.Resource == name && !isCustom(gr.Group) {
			all = append(all, gr)
		}
	}
	slices.SortFunc(all, func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) })
	if r.wildcards() {
		if group, ok := groupOf(data); ok {
			all = append(all, schema.GroupResource{Group: group, Resource: "*"})
		}
	}
	return append(all, everything)
}

// groupOf returns the group in a stored object: protobuf or JSON.
func groupOf(data []byte) (group string, ok bool) {
	var object runtime.TypeMeta
	if packed, is := bytes.CutPrefix(data, []byte("k8s\x00")); is {
		var unknown runtime.Unknown
		if unknown.Unmarshal(packed) != nil {
			return "", false
		}
		object = unknown.TypeMeta
	} else if json.Unmarshal(data, &object) != nil {
		return "", false
	}
	gv, err := schema.ParseGroupVersion(object.APIVersion)
	return gv.Group, err == nil && object.APIVersion != ""
}

// A Problem is a value that a file cannot open.
type Problem struct {
	Key, Prefix string
	Err         error
}

// Look counts the values in etcd. If open is true, it opens them, too, and lists the first
// few that cannot be opened and their number.
func (r Reader) Look(ctx context.Context, client *clientv3.Client, open bool) (s Stored, bad []Problem, lost int, err error) {
	s.Keys = map[string]int{}
	err = Walk(ctx, client, r.Root, func(kv *mvccpb.KeyValue) error {
		key := string(kv.Key)
		prefix, encrypted := splitStored(kv.Value)
		by, encrypts := r.plainBy(key, kv.Value)
		switch {
		case encrypted:
			s.Keys[KeyName(prefix)]++
		case by == nil:
			return nil
		case encrypts:
			s.Plain++
		}
		if !open || strings.HasPrefix(prefix, keyfile.StoredPrefix+"kms:") && s.Keys[KeyName(prefix)] > kmsSamples {
			return nil
		}
		if _, _, err := r.Open(ctx, key, kv.Value); err != nil {
			if lost++; len(bad) < named {
				bad = append(bad, Problem{key, prefix, err})
			}
		}
		return ctx.Err()
	})
	return s, bad, lost, err
}

// ObjectOf is a key in etcd as people call it.
func (r Reader) ObjectOf(key string) string { return strings.TrimPrefix(key, r.Root) }
