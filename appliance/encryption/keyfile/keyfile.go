// Package keyfile edits an encryption configuration of the API server as text, so that comments
// remain, and reads one with the API server's own reader.
package keyfile

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"

	"kthwd/appliance/advice"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// Kinds are the providers of which kthwd makes keys, in the order of preference. KindKMS is a
// further one to which it rotates: its key is in a key server.
var Kinds = []string{"secretbox", "aesgcm", "aescbc"}

const (
	identity = "identity"

	// VersionKMS is that of the key servers to which kthwd rotates.
	VersionKMS = "v2"

	keySize = 32 // AES-256; secretbox has no other

	// StoredPrefix begins each encrypted value
	// (apiserver/pkg/server/options/encryptionconfig/config.go).
	StoredPrefix = "k8s:enc:"
)

// KindKMS is the provider of a key server.
const KindKMS = "kms"

// Provider is one key of an encryption configuration.
type Provider struct {
	Kind string `json:"kind"`
	Name string `json:"name,omitempty"` // empty for identity

	Version string `json:"version,omitempty"` // of a kms
}

func (p Provider) String() string { return strings.TrimSpace(p.Kind + " " + p.Name) }

// Names are providers for people.
func Names(all []Provider) (said []string) {
	for _, p := range all {
		said = append(said, p.String())
	}
	return said
}

// Prefix is the beginning of each value that the provider has written; empty for identity.
func (p Provider) Prefix() string {
	switch p.Kind {
	case identity:
		return ""
	case KindKMS:
		version := p.Version
		if version == "" {
			version = "v1"
		}
		return StoredPrefix + "kms:" + version + ":" + p.Name + ":"
	}
	return StoredPrefix + p.Kind + ":v1:" + p.Name + ":"
}

// Hash is the hash of a file, as the API server publishes it.
func Hash(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// File is an encryption configuration that is edited as text, so that comments remain.
type File struct {
	Groups []Group
	doc    yaml.Node
}

// Group is an entry of resources.
type Group struct {
	Resources []string
	list      *yaml.Node // its providers
}

// Parse reads an encryption configuration. Its errors repeat no value of the file.
func Parse(data []byte) (*File, error) {
	f := &File{}
	if err := yaml.Unmarshal(data, &f.doc); err != nil {
		return nil, errors.New(text.Unquoted(err.Error()))
	}
	if hasAlias(&f.doc) {
		return nil, advice.With(errors.New("it uses an anchor of YAML"), "write each key out")
	}
	if len(f.doc.Content) == 0 {
		return nil, errors.New("it is empty")
	}
	resources := child(f.doc.Content[0], "resources")
	if resources == nil || resources.Kind != yaml.SequenceNode {
		return nil, errors.New("it has no resources")
	}
	for _, entry := range resources.Content {
		g := Group{list: child(entry, "providers")}
		names := child(entry, "resources")
		if g.list == nil || g.list.Kind != yaml.SequenceNode || len(g.list.Content) == 0 || names == nil {
			return nil, errors.New("an entry of resources has no providers")
		}
		for _, n := range names.Content {
			g.Resources = append(g.Resources, n.Value)
		}
		f.Groups = append(f.Groups, g)
	}
	return f, nil
}

func hasAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, hasAlias)
}

// child is the value of a key; nil without one.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// providersOf lists the keys of one entry of providers: a kind with several keys is several.
func providersOf(entry *yaml.Node) (all []Provider) {
	for i := 0; entry.Kind == yaml.MappingNode && i+1 < len(entry.Content); i += 2 {
		kind, value := entry.Content[i].Value, entry.Content[i+1]
		switch kind {
		case identity:
			all = append(all, Provider{Kind: identity})
		case KindKMS:
			p := Provider{Kind: KindKMS}
			if n := child(value, "name"); n != nil {
				p.Name = n.Value
			}
			if n := child(value, "apiVersion"); n != nil {
				p.Version = n.Value
			}
			all = append(all, p)
		default:
			keys := child(value, "keys")
			if keys == nil {
				continue
			}
			for _, k := range keys.Content {
				if n := child(k, "name"); n != nil {
					all = append(all, Provider{Kind: kind, Name: n.Value})
				}
			}
		}
	}
	return all
}

// providers lists the keys of a group; the first one writes.
func (g Group) providers() (all []Provider) {
	for _, entry := range g.list.Content {
		all = append(all, providersOf(entry)...)
	}
	return all
}

// writer is the provider that writes; identity for none.
func (g Group) writer() Provider {
	if all := g.providers(); len(all) > 0 {
		return all[0]
	}
	return Provider{Kind: identity}
}

// Encrypts reports whether the group belongs to a rotation: what is written without a key
// on purpose stays as it is.
func (g Group) Encrypts() bool { return g.writer().Kind != identity }

// All lists the keys of all groups, each once.
func (f *File) All() (all []Provider) {
	for _, g := range f.Groups {
		for _, p := range g.providers() {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// Writers lists the providers that encrypt, each once.
func (f *File) Writers() (all []Provider) {
	for _, g := range f.Groups {
		if p := g.writer(); g.Encrypts() && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

// Rotatable says why kthwd does not rotate the keys of a file; nil if it does.
func (f *File) Rotatable() error {
	wildcards := false
	for i, g := range f.Groups {
		keys := slices.ContainsFunc(g.providers(), func(p Provider) bool { return p.Kind != identity })
		if !g.Encrypts() && keys {
			return advice.With(fmt.Errorf("entry %d of resources writes without a key, and has keys to read with: a change by hand has not ended", i+1),
				"end it: put the key first again, or take it out when no value needs it")
		}
		wildcards = wildcards || slices.ContainsFunc(g.Resources, func(r string) bool { return strings.Contains(r, "*") })
	}
	switch writers := f.Writers(); {
	case len(writers) == 0:
		return advice.With(errors.New("nothing is encrypted: identity is the first provider everywhere"), "put a provider with a key before identity, and restart kthwd")
	case len(writers) > 1 && wildcards:
		return advice.With(errors.New("it has wildcards and writes with several keys, so the way back would not be certain"), "name the resources, or write with one key")
	}
	return nil
}

// NewProvider names a key that the file does not have: a name that was used before would
// make old values look like new ones.
func (f *File) NewProvider(kind string, stored []string) Provider {
	most := 0
	used := slices.Clone(stored)
	for _, p := range f.All() {
		used = append(used, p.Name)
	}
	for _, name := range used {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "key")); err == nil && n < 1<<30 {
			most = max(most, n)
		}
	}
	return Provider{Kind: kind, Name: "key" + strconv.Itoa(most+1)}
}

// NewKey makes the entry of a new key.
func NewKey(p Provider) (*yaml.Node, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	type one struct {
		Name   string `yaml:"name"`
		Secret string `yaml:"secret"`
	}
	var n yaml.Node
	err := n.Encode(map[string]map[string][]one{p.Kind: {"keys": {{p.Name, base64.StdEncoding.EncodeToString(key)}}}})
	return &n, err
}

// NewServer makes the entry of a key server.
func NewServer(p Provider, endpoint string) (*yaml.Node, error) {
	type server struct {
		Version  string `yaml:"apiVersion"`
		Name     string `yaml:"name"`
		Endpoint string `yaml:"endpoint"`
	}
	var n yaml.Node
	err := n.Encode(map[string]server{KindKMS: {p.Version, p.Name, endpoint}})
	return &n, err
}

// take removes the entry of the key p from every group, and returns it; nil if it is nowhere.
func (f *File) take(p Provider) (entry *yaml.Node) {
	for _, g := range f.Groups {
		g.list.Content = slices.DeleteFunc(g.list.Content, func(e *yaml.Node) bool {
			all := providersOf(e)
			if len(all) != 1 || all[0].Prefix() != p.Prefix() {
				return false
			}
			entry = e
			return true
		})
	}
	return entry
}

// A Form is what the file of a stage looks like, given the new key.
type Form int

// The forms of a file.
const (
	FormRead    Form = iota // the old ones write, the new key reads
	FormWrite               // the new key writes, the old ones read
	FormNew                 // the new key alone, and identity where it was
	FormWithout             // as before the rotation
)

// In returns the file in a form. entry is the new key if the file does not have it.
func In(data []byte, want Form, p Provider, entry *yaml.Node) ([]byte, error) {
	f, err := Parse(data)
	if err != nil {
		return nil, err
	}
	var keyed []Group // before the key is taken out, which may be the only one
	for _, g := range f.Groups {
		if slices.ContainsFunc(g.providers(), func(p Provider) bool { return p.Kind != identity }) {
			keyed = append(keyed, g)
		}
	}
	if had := f.take(p); had != nil {
		entry = had
	}
	if entry == nil && want != FormWithout {
		return nil, ErrNoKey
	}
	for _, g := range keyed {
		switch want {
		case FormRead:
			g.list.Content = slices.Insert(g.list.Content, min(1, len(g.list.Content)), entry) // the new one may be the only one
		case FormWrite:
			g.list.Content = slices.Insert(g.list.Content, 0, entry)
		case FormNew:
			plain := slices.DeleteFunc(g.list.Content, func(e *yaml.Node) bool {
				return slices.ContainsFunc(providersOf(e), func(p Provider) bool { return p.Kind != identity })
			})
			g.list.Content = append([]*yaml.Node{entry}, plain...)
		}
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&f.doc), e.Close()); err != nil {
		return nil, err
	}
	// The comment of a file that an older kthwd has made would name the old key.
	return bytes.Replace(out.Bytes(), []byte("new ones with key1; those written"), []byte("new ones with the first key; those written"), 1), nil
}

// ErrNoKey means that a file lacks the new key of a rotation.
var ErrNoKey = errors.New("the new key is not here")

// Load reads a configuration with the API server's own reader. What it starts ends with ctx.
func Load(ctx context.Context, data []byte, id string) (*encryptionconfig.EncryptionConfiguration, error) {
	// In memory that has a path (memfd_create(2)): what was proven is what is used, and a
	// key belongs on no further disk.
	fd, err := unix.MemfdCreate("kthwd", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL) // without it vm.memfd_noexec=2 refuses
	if errors.Is(err, unix.EINVAL) {                                            // before Linux 6.3
		fd, err = unix.MemfdCreate("kthwd", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, f.Name(), true, id)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(text.Unquoted(err.Error()), f.Name(), "the file"))
	}
	return c, nil
}

// AnswerTime is for the key servers of a file, as upstream waits.
const AnswerTime = 10 * time.Second

// Answers waits until the key servers of a configuration answer.
func Answers(ctx context.Context, c *encryptionconfig.EncryptionConfiguration) error {
	if len(c.HealthChecks) != 1 {
		return errors.New("upstream checks several things")
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/healthz", nil)
		if err != nil {
			return err
		}
		if err = c.HealthChecks[0].Check(req); err == nil {
			return nil
		}
		supervise.Sleep(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return err
		}
	}
}
