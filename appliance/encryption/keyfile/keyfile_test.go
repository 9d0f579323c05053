package keyfile

import (
	"slices"
	"strings"
	"testing"
)

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

func providersIn(t *testing.T, data []byte) string {
	t.Helper()
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, g := range f.Groups {
		var one []string
		for _, p := range g.providers() {
			one = append(one, p.String())
		}
		all = append(all, strings.Join(one, ", "))
	}
	return strings.Join(all, " | ")
}

// Each form can be made from each one that has the new key, is what upstream reads, and is
// made only once.
func TestForms(t *testing.T) {
	p := Provider{Kind: "aesgcm", Name: "key2"}
	key, err := NewKey(p)
	if err != nil {
		t.Fatal(err)
	}
	want := map[Form]string{
		FormRead:    "secretbox key1, aesgcm key2, identity | identity",
		FormWrite:   "aesgcm key2, secretbox key1, identity | identity",
		FormNew:     "aesgcm key2, identity | identity",
		FormWithout: "secretbox key1, identity | identity",
	}
	from := map[Form][]byte{FormWithout: []byte(written)}
	for _, f := range []Form{FormRead, FormWrite, FormNew} {
		if from[f], err = In([]byte(written), f, p, key); err != nil {
			t.Fatal(err)
		}
	}
	for start, data := range from {
		for to, want := range want {
			if start == FormNew && to != FormNew || start == FormWithout && to != FormWithout {
				continue // one of the keys is gone
			}
			got, err := In(data, to, p, nil)
			if err != nil {
				t.Fatalf("%d to %d: %v", start, to, err)
			}
			if is := providersIn(t, got); is != want {
				t.Errorf("%d to %d: got %s, want %s", start, to, is, want)
			}
			if !strings.Contains(string(got), "# a comment that stays") {
				t.Errorf("%d to %d: the comment is gone", start, to)
			}
			if c, err := Load(t.Context(), got, ""); err != nil || len(c.Transformers) != 3 {
				t.Errorf("%d to %d: upstream reads %v, %v", start, to, c, err)
			}
			if twice, err := In(got, to, p, nil); err != nil || string(twice) != string(got) {
				t.Errorf("%d to %d: made twice it differs: %v\n%s", start, to, err, twice)
			}
		}
	}
	if _, err := In([]byte(written), FormRead, p, nil); err != ErrNoKey {
		t.Errorf("without the key: got %v", err)
	}
}

// The name of a new key is one that no value and no key has, in whatever order they stand.
func TestNewName(t *testing.T) {
	f, err := Parse([]byte(written))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		stored []string
		want   string
	}{{nil, "key2"}, {[]string{"key7", "other", "keyx"}, "key8"}} {
		if got := f.NewProvider("secretbox", tt.stored).Name; got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.stored, got, tt.want)
		}
	}
}

// Files that kthwd does not change say why, and no error repeats a key.
func TestRefusedFiles(t *testing.T) {
	entry := func(providers string) string {
		return "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n" + providers
	}
	one := "  - secretbox: {keys: [{name: key1, secret: " + secret1 + "}]}\n"
	for name, tt := range map[string]struct{ file, want string }{
		"empty":             {"", "it is empty"},
		"no YAML":           {"a: [" + secret1, "(a value)"},
		"no resources":      {"kind: EncryptionConfiguration\n", "no resources"},
		"no providers":      {"resources:\n- resources: [secrets]\n", "no providers"},
		"an anchor":         {entry("  - &a\n    identity: {}\n  - *a\n"), "anchor"},
		"not encrypted":     {entry("  - identity: {}\n"), "nothing is encrypted"},
		"a change half-way": {entry("  - identity: {}\n" + one), "a change by hand has not ended"},
		"two writers and a wildcard": {entry(one) + "- resources: ['*.*']\n  providers:\n  - aescbc: {keys: [{name: key9, secret: " + secret2 + "}]}\n",
			"wildcards"},
	} {
		f, err := Parse([]byte(tt.file))
		if err == nil {
			err = f.Rotatable()
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if strings.Contains(err.Error(), secret1[:12]) || !strings.Contains(err.Error(), tt.want) && tt.want != "(a value)" {
			t.Errorf("%s: got %q, want %q and no key", name, err, tt.want)
		}
	}
	short := strings.Replace(written, secret1, "c2hvcnQ=", 1)
	if _, err := Load(t.Context(), []byte(short), ""); err == nil || strings.Contains(err.Error(), "c2hvcnQ") || strings.Contains(err.Error(), "/proc/") {
		t.Errorf("a key of the wrong length: got %v", err)
	}
}

// The prefix of each provider is that of the values which upstream writes with it.
func TestPrefix(t *testing.T) {
	for p, want := range map[Provider]string{
		{Kind: "secretbox", Name: "key1"}:           "k8s:enc:secretbox:v1:key1:",
		{Kind: "aescbc", Name: "a"}:                 "k8s:enc:aescbc:v1:a:",
		{Kind: "kms", Name: "vault", Version: "v2"}: "k8s:enc:kms:v2:vault:",
		{Kind: identity}:                            "",
	} {
		if got := p.Prefix(); got != want {
			t.Errorf("%v: got %s, want %s", p, got, want)
		}
	}
	if slices.Contains(Kinds, KindKMS) {
		t.Error("kthwd makes no key for a key server")
	}
}
