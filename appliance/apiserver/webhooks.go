package apiserver

import (
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
)

// keepWebhooks keeps the caches behind the server's own admission plugins.
func (a *Server) keepWebhooks(shared informers.SharedInformerFactory) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.informers = shared
}

// Webhooks returns, by the name of each admission webhook, its configurations as kubectl
// takes them, such as validatingwebhookconfiguration/policy: several may have the name.
// It reads the cache of the server's own admission, asks nobody, and is empty until the
// server is built.
func (a *Server) Webhooks() map[string][]string {
	a.mu.Lock()
	shared := a.informers
	a.mu.Unlock()
	if shared == nil {
		return nil
	}
	all := map[string][]string{}
	add := func(webhook, configuration string) { all[webhook] = append(all[webhook], configuration) }
	admission := shared.Admissionregistration().V1()
	validating, _ := admission.ValidatingWebhookConfigurations().Lister().List(labels.Everything()) // of a cache: no error
	for _, c := range validating {
		for _, w := range c.Webhooks {
			add(w.Name, "validatingwebhookconfiguration/"+c.Name)
		}
	}
	mutating, _ := admission.MutatingWebhookConfigurations().Lister().List(labels.Everything())
	for _, c := range mutating {
		for _, w := range c.Webhooks {
			add(w.Name, "mutatingwebhookconfiguration/"+c.Name)
		}
	}
	return all
}
