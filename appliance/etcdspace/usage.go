package etcdspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The pages in which the keys are read. A page is read while writes go on; its size bounds
// the memory of the member, which returns keys with their values.
const (
	pageKeys  = 64
	pageBytes = 256 << 10
	pageRate  = 32 << 20 // bytes a second
)

// Usage is what the database is used for.
type Usage struct {
	Revision  int64   `json:"revision"`  // that was counted
	Compacted int64   `json:"compacted"` // older revisions are gone
	Keys      int64   `json:"keys"`
	Bytes     int64   `json:"bytes"` // of keys and values, without history and without the database's own structure
	Groups    []Group `json:"groups"`
}

// Group are the keys of one resource in one namespace.
type Group struct {
	Resource  string `json:"resource"`
	Namespace string `json:"namespace,omitempty"`
	Count     int64  `json:"count"`
	Bytes     int64  `json:"bytes"`
}

// History is the number of revisions that a compaction drops.
func (u Usage) History() int64 { return max(u.Revision-u.Compacted, 0) }

// Usage counts every key at one revision, as the member here has stored them, without the
// other members. It reads in small pages and, at most, pageRate bytes a second, so that no
// other request waits for it. Groups are sorted by bytes.
func (c *Cluster) Usage(ctx context.Context) (Usage, error) {
	for attempt := 0; ; attempt++ {
		u, err := c.count(ctx)
		if !errors.Is(err, rpctypes.ErrCompacted) || attempt == 3 {
			return u, err
		}
	}
}

func (c *Cluster) count(ctx context.Context) (u Usage, err error) {
	groups := map[[2]string]*Group{}
	if u.Revision, err = c.Walk(ctx, func(kv *mvccpb.KeyValue) { u.add(groups, kv) }); err != nil {
		return u, err
	}
	for _, g := range groups {
		u.Groups = append(u.Groups, *g)
	}
	slices.SortFunc(u.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Resource, b.Resource), strings.Compare(a.Namespace, b.Namespace))
	})
	u.Compacted, err = c.compacted(ctx)
	return u, err
}

// Walk calls each for every key of one revision, in order, and returns the revision. It reads
// as Usage does. Where a compaction overtakes it, the error is rpctypes.ErrCompacted, and the
// caller begins anew.
func (c *Cluster) Walk(ctx context.Context, each func(*mvccpb.KeyValue)) (revision int64, err error) {
	begun, from, limit, read := time.Now(), "\x00", int64(pageKeys), int64(0)
	for {
		options := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithSerializable(), clientv3.WithLimit(limit), clientv3.WithRev(revision)}
		page, err := c.local.Get(ctx, from, options...)
		if err != nil {
			return revision, fmt.Errorf("read the keys: %w", err)
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		size := int64(0)
		for _, kv := range page.Kvs {
			size += int64(len(kv.Key) + len(kv.Value))
			each(kv)
		}
		if !page.More || len(page.Kvs) == 0 {
			return revision, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		limit = max(1, min(pageKeys, pageBytes/max(size/int64(len(page.Kvs)), 1)))
		read += size
		if err := pace(ctx, begun, read); err != nil {
			return revision, err
		}
	}
}

// pace blocks until so many bytes may have been read since begun.
func pace(ctx context.Context, begun time.Time, read int64) error {
	due := begun.Add(time.Duration(float64(read) / pageRate * float64(time.Second)))
	select {
	case <-time.After(time.Until(due)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// add counts one key.
func (u *Usage) add(groups map[[2]string]*Group, kv *mvccpb.KeyValue) {
	resource, namespace := ResourceOf(string(kv.Key))
	id := [2]string{resource, namespace}
	g := groups[id]
	if g == nil {
		g = &Group{Resource: resource, Namespace: namespace}
		groups[id] = g
	}
	size := int64(len(kv.Key) + len(kv.Value))
	g.Count++
	g.Bytes += size
	u.Keys++
	u.Bytes += size
}

// ResourceOf returns the resource and the namespace of a key of kube-apiserver, as
// apiserver/pkg/registry stores it below its prefix: PREFIX/[GROUP/]RESOURCE/[NAMESPACE/]NAME.
// Of another key it returns the first part.
func ResourceOf(key string) (resource, namespace string) {
	parts := strings.Split(strings.Trim(key, "/"), "/")
	if len(parts) < 3 || parts[0] == "kthwd" {
		return "/" + parts[0], ""
	}
	resource, rest := parts[1], parts[2:]
	switch {
	case strings.Contains(resource, ".") && len(rest) > 1: // GROUP/RESOURCE
		resource, rest = rest[0]+"."+resource, rest[1:]
	case resource == "services" && len(rest) > 1: // services/specs and services/endpoints
		resource, rest = resource+"/"+rest[0], rest[1:]
	}
	if len(rest) > 1 {
		namespace = rest[0]
	}
	return resource, namespace
}

// compacted returns the revision of the last compaction; 0 for none. A watch from the first
// revision is told it, and nothing is read for that.
func (c *Cluster) compacted(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	answer, ok := <-c.local.Watch(ctx, "\x00kthwd-none", clientv3.WithRev(1), clientv3.WithCreatedNotify())
	switch {
	case !ok:
		return 0, fmt.Errorf("ask for the last compaction: %w", cmp.Or(ctx.Err(), errors.New("no answer")))
	case answer.CompactRevision > 0:
		return answer.CompactRevision, nil
	}
	return 0, nil
}
