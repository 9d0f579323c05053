package apiserver

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"

	"kthwd/appliance/advice"
)

// reloadHook is upstream's reload of the encryption configuration
// (apiserver/pkg/server/options/etcd.go), which believes each file that can be parsed.
const reloadHook = "start-encryption-provider-config-automatic-reload"

// reloadable makes upstream build its API server so that the encryption configuration can be
// replaced, unless the file is one that upstream accepts without a reload only: key servers of
// one name. It returns the hash of the file; "" without one.
func (a *Server) reloadable(o *genericoptions.EtcdOptions) string {
	if o.EncryptionProviderConfigFilepath == "" || a.encryption == nil {
		return ""
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the probes of key servers, where there are any
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, o.EncryptionProviderConfigFilepath, true, "")
	if err != nil {
		a.encryption.Fixed(advice.With(errors.New("its API server cannot use another encryption configuration while it runs"), "give each key server in the file a name of its own, and restart kthwd"))
		return ""
	}
	o.EncryptionProviderConfigAutomaticReload = true
	return c.EncryptionFileContentHash
}

// gateEncryption lets the gate replace the encryption configuration, in place of upstream's reload.
func (a *Server) gateEncryption(config *genericapiserver.Config, hash string) {
	t, ok := config.ResourceTransformers.(*encryptionconfig.DynamicTransformers)
	if !ok || a.encryption == nil {
		return
	}
	config.DisabledPostStartHooks.Insert(reloadHook)
	a.encryption.Serve(wait.ContextForChannel(config.DrainedNotify()), t, hash, config.APIServerID)
}
