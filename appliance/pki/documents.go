package pki

import (
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// A document is a YAML file that the API server reads.
type document struct {
	path   func(Layout) string
	render func() ([]byte, error)
	mode   fs.FileMode
}

var documents = []document{
	{Layout.EncryptionConfig, renderEncryption, modeSecret},
	{Layout.AuditPolicy, func() ([]byte, error) { return auditPolicy, nil }, modePublic},
	{Layout.AuthenticationConfig, func() ([]byte, error) { return authenticationConfig, nil }, modePublic},
}

func (l Layout) isPublicDocument(path string) bool {
	return slices.ContainsFunc(documents, func(d document) bool { return d.mode == modePublic && d.path(l) == path })
}

//go:embed audit-policy.yaml
var auditPolicy []byte

//go:embed authentication-config.yaml
var authenticationConfig []byte

const encryptionConfig = `# How kube-apiserver encrypts secrets in etcd: new ones with the first key; those written
# before there was a key are still readable.
#
# Anyone with this file and a copy of etcd can read the secrets. Without it, no one
# can: keep a copy, but not beside etcd's snapshots. Every controller needs the
# same file.
kind: EncryptionConfiguration
apiVersion: apiserver.config.k8s.io/v1
resources:
  - resources:
      - secrets
    providers:
      - secretbox:
          keys:
            - name: key1
              secret: %s
      - identity: {}
`

func renderEncryption() ([]byte, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, encryptionConfig, base64.StdEncoding.EncodeToString(key)), nil
}

// checkDocument requires YAML with a kind. The API server checks which kind it is.
func checkDocument(data []byte) error {
	var d struct {
		Kind string `yaml:"kind"`
	}
	if err := decodeYAML(data, &d); err != nil {
		return err
	}
	if d.Kind == "" {
		return errors.New("has no kind")
	}
	return nil
}

var yamlLine = regexp.MustCompile(`line \d+`)

// decodeYAML keeps only the line of yaml's error, because the rest may quote the file.
func decodeYAML(data []byte, into any) error {
	err := yaml.Unmarshal(data, into)
	if err == nil {
		return nil
	}
	if line := yamlLine.FindString(err.Error()); line != "" {
		return fmt.Errorf("not the expected YAML, at %s", line)
	}
	return errors.New("not the expected YAML")
}
