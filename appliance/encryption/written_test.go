package encryption

const (
	secret1 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	secret2 = "HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// written is a file as kthwd makes it, with a second entry that is plain on purpose.
const written = `# a comment that stays
kind: EncryptionConfiguration
apiVersion: apiserver.config.k8s.io/v1
resources:
  - resources:
      - secrets
      - widgets.example.com
    providers:
      - secretbox:
          keys:
            - name: key1
              secret: ` + secret1 + `
      - identity: {}
  - resources:
      - configmaps
    providers:
      - identity: {}
`
