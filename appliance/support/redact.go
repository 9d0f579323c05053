package support

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"kthwd/appliance/paths"
	"kthwd/appliance/text"
)

// Redactor takes secrets out of texts. The zero value knows no secret, but whatever looks
// like one.
type Redactor struct {
	secrets []string // in all forms
	once    sync.Once
	replace *strings.Replacer
}

// hidden stands where a secret was.
const hidden = "REDACTED"

// shortest is the length of the shortest secret that is looked for: a shorter one would be
// found in innocent words.
const shortest = 8

// mostSecret is the size of the largest file that is searched for secrets.
const mostSecret = 1 << 20

// NewRedactor reads the secrets of a data directory, and of other files that a user's
// configuration names. Files that cannot be read hold nothing that could be given away.
func NewRedactor(dir string, files ...string) *Redactor {
	r := &Redactor{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && path != dir && d.Name() == "member" { // etcd's data
			return fs.SkipDir
		}
		if d.Type().IsRegular() && !strings.HasSuffix(path, ".log") {
			r.file(path)
		}
		return nil
	})
	for _, file := range files {
		r.file(file)
	}
	return r
}

// file adds the secrets in a file: private keys, values of secret keys in YAML and JSON,
// and the fields of a CSV file with tokens or passwords.
func (r *Redactor) file(path string) {
	f, _, err := paths.OpenRegular(path, true) // a setting may name a link
	if err != nil {
		return
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, mostSecret))
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.Contains(block.Type, "PRIVATE KEY") {
			r.key(block)
		}
	}
	for _, m := range secretValue().FindAllSubmatch(text, -1) {
		r.add(m[1])
		if plain, err := base64.StdEncoding.DecodeString(string(m[1])); err == nil {
			r.add(plain)
			for rest := plain; ; { // a key in a kubeconfig
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil {
					break
				}
				r.key(block)
			}
		}
	}
	if strings.HasSuffix(path, ".csv") {
		for line := range bytes.Lines(text) {
			first, _, _ := bytes.Cut(line, []byte(","))
			r.add(bytes.Trim(bytes.TrimSpace(first), `"`))
		}
	}
	for _, token := range tokens().FindAll(text, -1) {
		r.add(token)
	}
}

// key adds a private key: as a whole, its PEM form, and each line of that.
func (r *Redactor) key(block *pem.Block) {
	r.add(block.Bytes)
	text := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
	r.add(text)
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("-----")) {
			r.add(line)
		}
	}
}

// add adds a secret in each of its forms.
func (r *Redactor) add(secret []byte) {
	secret = bytes.TrimSpace(secret)
	if len(secret) < shortest {
		return
	}
	quoted, _ := json.Marshal(string(secret))
	forms := []string{
		string(secret), strings.Trim(string(quoted), `"`), url.QueryEscape(string(secret)),
		base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
		hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
	}
	r.secrets = append(r.secrets, forms...)
}

// secretValue is a value in YAML or JSON whose key names a secret.
var secretValue = text.Pattern(`(?im)["']?\b(?:secret|token|password|passwd|passphrase|client-key-data|tls-key|apikey|api-key)["']?\s*:\s*["']?([^\s"',}]+)`)

// tokens are texts that are secret by their form: the tokens of kthwd join, and those of
// service accounts and users.
var tokens = text.Pattern(`kthwd1\.[A-Za-z0-9_+/=-]{8,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+`)

// looks are patterns of secrets that come from elsewhere, each with what replaces it.
var looks = sync.OnceValue(func() []look {
	return []look{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`), hidden},
		{tokens(), hidden},
		{regexp.MustCompile(`(://)[^/\s"']*@`), "${1}" + hidden + "@"},
		{regexp.MustCompile(`(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + hidden},
		{regexp.MustCompile(`(?i)\b((?:[a-z0-9-]*[-_])?(?:password|passwd|passphrase|secret|token|api-?key|access-?key)\\?["']?\s*[=:]\s*\\?["']?)[^\s"'&,;}\]\\]+`), "${1}" + hidden},
	}
})

type look struct {
	is   *regexp.Regexp
	with string
}

// Clean returns text without secrets.
func (r *Redactor) Clean(text []byte) []byte {
	r.once.Do(func() {
		slices.SortFunc(r.secrets, func(a, b string) int { return len(b) - len(a) })
		var pairs []string
		for _, secret := range r.secrets { // the first of several that match counts
			pairs = append(pairs, secret, hidden)
		}
		r.replace = strings.NewReplacer(pairs...)
	})
	text = []byte(r.replace.Replace(string(text)))
	for _, l := range looks() {
		text = l.is.ReplaceAll(text, []byte(l.with))
	}
	return text
}

// CleanFlag returns the value of a program's flag without what looks like a secret: a
// password in a URL, a token, or the value of a flag whose name ends in such a word.
func CleanFlag(key, value string) string {
	flag := key + "="
	return strings.TrimPrefix(string(new(Redactor).Clean([]byte(flag+value))), flag)
}
