package controllers

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
)

// trimNodes keeps the nodes of the scheduler's cache without managedFields, which nobody reads
// there. Upstream does the same with the scheduler's pods, and with everything in the caches of
// kube-controller-manager and kube-apiserver. Every scheduler has this informer. Call it before the
// informers start.
func trimNodes(factory informers.SharedInformerFactory) error {
	return factory.Core().V1().Nodes().Informer().SetTransform(func(o any) (any, error) {
		if object, err := meta.Accessor(o); err == nil && object.GetManagedFields() != nil {
			object.SetManagedFields(nil)
		}
		return o, nil
	})
}
