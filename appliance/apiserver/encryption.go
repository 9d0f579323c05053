package apiserver

import (
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
)

// reloadHook is upstream's reload of the encryption configuration
// (apiserver/pkg/server/options/etcd.go), which believes each file that can be parsed.
const reloadHook = "start-encryption-provider-config-automatic-reload"

// reloadable makes upstream build its API server so that the encryption configuration can be
// replaced. It returns the hash of the file; "" without one.
func reloadable(o *genericoptions.EtcdOptions) string {
	if o.EncryptionProviderConfigFilepath == "" {
		return ""
	}
	hash, err := encryptionconfig.GetEncryptionConfigHash(o.EncryptionProviderConfigFilepath)
	if err != nil {
		return "" // upstream says more
	}
	o.EncryptionProviderConfigAutomaticReload = true
	return hash
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
