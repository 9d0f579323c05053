package manifest

import (
	"context"
	"errors"
	"fmt"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"kthwd/appliance/advice"
)

const (
	manager = "kthwd-try" // owns the fields of what is applied
	poll    = 20 * time.Millisecond
	// patience is how long a kind or a definition may take; upstream's own take less than a second.
	patience = time.Minute
)

// Client applies objects to one cluster.
type Client struct {
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// New makes a client. It asks nothing yet.
func New(config *rest.Config) (*Client, error) {
	d, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	discover, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Client{d, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discover))}, nil
}

// Apply applies the objects in their order, and waits until the definitions among them are
// established. An object without a namespace that needs one is put into "default". It ends
// at the first object that the cluster refuses.
func (c *Client) Apply(ctx context.Context, objects []Object) error {
	var waits []Object
	for _, o := range objects {
		if len(waits) > 0 && !Definitions(o) {
			if err := c.established(ctx, waits); err != nil {
				return err
			}
			waits = nil
		}
		if err := c.apply(ctx, o); err != nil {
			return withHint(fmt.Errorf("%s: %w", o, err))
		}
		if Definitions(o) {
			waits = append(waits, o)
		}
	}
	return c.established(ctx, waits)
}

// withHint adds the way to an object that the cluster does not know how to take.
func withHint(err error) error {
	switch {
	case meta.IsNoMatchError(err):
		return advice.With(err, "the API server does not serve this kind: --crd names the file of its definition")
	case apierrors.IsNotFound(err):
		return advice.With(err, "objects are applied in their order: put the namespace first")
	}
	return err
}

func (c *Client) apply(ctx context.Context, o Object) error {
	mapping, err := c.mapping(o)
	if err != nil {
		return err
	}
	var resource dynamic.ResourceInterface = c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if o.GetNamespace() == "" {
			o.SetNamespace(metav1.NamespaceDefault)
		}
		resource = c.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
	}
	o.SetManagedFields(nil)
	_, err = resource.Apply(ctx, o.GetName(), o.Unstructured, metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

// mapping finds the resource of an object. That of a definition which is established may be
// missing from the API's lists for a moment.
func (c *Client) mapping(o Object) (m *meta.RESTMapping, err error) {
	kind := o.GroupVersionKind()
	find := func() error {
		m, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		return err
	}
	if find() == nil || !meta.IsNoMatchError(err) {
		return m, err
	}
	c.mapper.Reset()
	return m, find()
}

// established waits for definitions.
func (c *Client) established(ctx context.Context, all []Object) error {
	for _, o := range all {
		last := errors.New("the API server has not looked at it yet")
		err := wait.PollUntilContextTimeout(ctx, poll, patience, true, func(ctx context.Context) (bool, error) {
			last = c.served(ctx, o, last)
			_, never := errors.AsType[refusedNames](last)
			return last == nil || never, nil
		})
		if err == nil {
			err = last
		}
		if err != nil {
			return advice.With(fmt.Errorf("%s: not established: %w", o, last), "correct the definition; two of one group cannot have the same names")
		}
	}
	if len(all) > 0 {
		c.mapper.Reset()
	}
	return nil
}

// refusedNames is why a definition cannot be established while the others are as they are.
type refusedNames string

func (r refusedNames) Error() string { return string(r) }

// served reports why a definition's kind cannot be used yet. before is the reason of the
// last time.
func (c *Client) served(ctx context.Context, o Object, before error) error {
	got, err := c.dynamic.Resource(apiextensions.SchemeGroupVersion.WithResource("customresourcedefinitions")).Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	var crd apiextensions.CustomResourceDefinition
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &crd); err != nil {
		return err
	}
	ready := false
	for _, condition := range crd.Status.Conditions {
		switch {
		case condition.Type == apiextensions.NamesAccepted && condition.Status == apiextensions.ConditionFalse:
			return refusedNames(condition.Message)
		case condition.Type == apiextensions.Established && condition.Status == apiextensions.ConditionTrue:
			ready = true
		case condition.Type != apiextensions.NonStructuralSchema && condition.Status == apiextensions.ConditionFalse && condition.Message != "":
			before = errors.New(condition.Message)
		}
	}
	if !ready {
		return before
	}
	return c.listed(ctx, &crd)
}

// listed reports whether the objects of each version can be listed: the API server opens the
// paths of a definition a moment after it is established.
func (c *Client) listed(ctx context.Context, crd *apiextensions.CustomResourceDefinition) error {
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		resource := schema.GroupVersionResource{Group: crd.Spec.Group, Version: v.Name, Resource: crd.Spec.Names.Plural}
		if _, err := c.dynamic.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			return err
		}
	}
	return nil
}
