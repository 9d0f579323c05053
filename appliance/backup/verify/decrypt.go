package verify

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

// keys are the keys of an encryption configuration.
type keys map[schema.GroupResource]value.Transformer

// loadKeys reads the keys of an encryption configuration with the API server's own reader.
// Key management services are left out: they are not asked.
func loadKeys(ctx context.Context, path string) (keys, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	local, err := withoutKMS(data)
	if err != nil || local == nil {
		return nil, err
	}
	// In memory that has a path (memfd_create(2)): a key belongs on no further disk.
	fd, err := unix.MemfdCreate("kthwd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer f.Close()
	if _, err := f.Write(local); err != nil {
		return nil, err
	}
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, f.Name(), false, "")
	if err != nil {
		return nil, err
	}
	return c.Transformers, nil
}

// withoutKMS returns the configuration without key management services; nil if nothing is left.
func withoutKMS(data []byte) ([]byte, error) {
	var c map[string]any
	if err := yaml.Unmarshal(data, &c); err != nil {
		return nil, errors.New("not YAML")
	}
	resources, _ := c["resources"].([]any)
	var left []any
	for _, r := range resources {
		one, _ := r.(map[string]any)
		providers, _ := one["providers"].([]any)
		var local []any
		for _, p := range providers {
			if kind, _ := p.(map[string]any); kind["kms"] == nil {
				local = append(local, p)
			}
		}
		if one["providers"] = local; len(local) > 0 {
			left = append(left, one)
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	c["resources"] = left
	return yaml.Marshal(c)
}

// open decrypts the value of a key with whichever key Fits.
func (k keys) open(ctx context.Context, key string, data []byte) error {
	err := errors.New("it has no key for it")
	for _, t := range k {
		if _, _, err = t.TransformFromStorage(ctx, data, value.DefaultContext(key)); err == nil {
			return nil
		}
	}
	// The error of a cipher quotes neither key nor value.
	return fmt.Errorf("no key fits: %w", err)
}
