// Package rotations makes what replaces the keys and CAs of a running controller: the key of
// encrypted secrets, that of service account tokens, and the CAs of the cluster, the front proxy and etcd.
//
//	all := rotations.New(rotations.Config{…})
//	api := apiserver.New(apiserver.Config{Encryption: all.Gate, TokenKeys: all.Keys, Used: all.Used, …})
//	for _, r := range all.All() { go r.Run(ctx) }
//
// How each goes is in the packages encryption, tokenrotation and carotation. Here is what they need
// of the other parts of the process, and which of the user's flags exclude one.
package rotations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation"
	"kthwd/appliance/carotation/watch"
	"kthwd/appliance/config"
	"kthwd/appliance/encryption"
	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdca"
	"kthwd/appliance/lease"
	"kthwd/appliance/logging"
	"kthwd/appliance/membership"
	"kthwd/appliance/observe"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/sharedfiles"
	"kthwd/appliance/status"
	"kthwd/appliance/tokenkeys"
	"kthwd/appliance/tokenrotation"
)

// Config is the input of New.
type Config struct {
	Controller config.Controller
	Args       map[string][]program.Arg                                // the programs' command lines
	Prefix     string                                                  // of kube-apiserver's keys in etcd
	Shared     *sharedfiles.Files                                      // the files that all controllers share
	WriteRun   func(name string, data []byte) (path string, err error) // writes a file of the run directory
	Life       time.Duration                                           // of the certificates that kthwd issues; 0 means a year

	Etcd    *etcd.Member
	Members *membership.Members
	Mover   *etcdca.Mover
	Others  *others.Others
	Machine *observe.Watch   // is told of files that are replaced for a reason
	Refused *tokenkeys.Watch // of tokens that the API server refuses

	Manager, Scheduler *lease.Pause                 // end the terms of the two programs
	Refresh            func()                       // makes the two programs read their kubeconfigs again
	Within             time.Duration                // in which the programs read a certificate again
	Client             func() (*rest.Config, error) // of the API server

	Logs *logging.Logs
}

// Rotations has all rotations of a controller. Make one with New.
type Rotations struct {
	cfg    Config
	layout pki.Layout
	log    *slog.Logger

	Gate *gate.Gate          // gives the API server its encryption configuration
	Keys *tokenrotation.Keys // gives the API server the keys of service account tokens

	encryption *encryption.Rotation
	tokens     *tokenrotation.Rotation
	cas        []*carotation.Rotation // of each CA
	watches    []*watch.Watch         // one for each of them
}

// A Rotation replaces one key or one CA.
type Rotation interface {
	Run(ctx context.Context) // carries it on until ctx ends
	Findings() []status.Finding
	Private() map[string]http.HandlerFunc // the handlers of its verbs
	prometheus.Collector
}

// New makes the rotations of a controller. Nothing runs yet.
func New(c Config) *Rotations {
	r := &Rotations{cfg: c, layout: c.Controller.Layout(), log: c.Logs.Logger("kthwd")}
	r.Gate, r.Keys = r.newGate(), r.newKeys()
	r.encryption, r.tokens = r.newEncryption(), r.newTokens()
	r.cas = r.newCAs()
	return r
}

// All returns the rotations. Run each until the process leaves: a rotation stops before the API
// server does.
func (r *Rotations) All() []Rotation {
	all := []Rotation{r.encryption, r.tokens}
	for _, ca := range r.cas {
		all = append(all, ca)
	}
	return all
}

// Handle lets the controller that carries a rotation on ask this one.
func (r *Rotations) Handle(o *others.Others) {
	o.Handle(encryption.PeerPath, r.encryption.Peer())
	o.Handle(tokenrotation.PeerPath, r.tokens.Peer())
	for i, ca := range carotation.CAs() {
		o.Handle(ca.PeerPath(), r.cas[i].Peer())
	}
}

// Admit refuses a controller that missed a step of a rotation, before its API server starts. Call
// it on a controller that has others.
func (r *Rotations) Admit(ctx context.Context, client *clientv3.Client) error {
	if err := encryption.Admit(ctx, r.layout, client, program.Value(r.cfg.Args[program.APIServer], "encryption-provider-config")); err != nil {
		return err
	}
	if err := tokenrotation.Admit(ctx, r.layout, client); err != nil {
		return err
	}
	return carotation.Admit(ctx, r.layout, client)
}

// longestRequest is upstream's default of the API server's --request-timeout.
const longestRequest = time.Minute

// newGate makes what gives the API server its encryption configuration.
func (r *Rotations) newGate() *gate.Gate {
	api := r.cfg.Args[program.APIServer]
	return gate.New(gate.Config{
		File: program.Value(api, "encryption-provider-config"), Prefix: r.cfg.Prefix, Etcd: r.cfg.Etcd,
		Reload: program.Value(api, "encryption-provider-config-automatic-reload") == "true",
		Log:    r.cfg.Logs.Logger(program.APIServer), Loaded: func(path string) { r.cfg.Machine.Accept(path) },
		Edited: r.useEdited,
	})
}

// useEdited makes known that the API server uses an encryption configuration that was edited by
// hand. The cluster must know the keys before the old one is taken out, or no controller could
// start again.
func (r *Rotations) useEdited(path string) {
	r.cfg.Machine.Proven(path)
	server := r.cfg.Etcd.Running()
	if server == nil {
		return
	}
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), longestRequest)
	defer cancel()
	if err := r.cfg.Shared.Record(ctx, client, path, false); err != nil {
		r.log.Warn("the keys in an edited file are not known to the cluster: restart kthwd before you take an old one out", "file", path, "err", err)
	}
}

// newEncryption makes what rotates the encryption key.
func (r *Rotations) newEncryption() *encryption.Rotation {
	settle := longestRequest
	if d, err := time.ParseDuration(program.Value(r.cfg.Args[program.APIServer], "request-timeout")); err == nil && d > 0 {
		settle = d
	}
	return encryption.New(encryption.Config{
		Name: r.cfg.Controller.Name, Layout: r.layout, Etcd: r.cfg.Etcd, Gate: r.Gate, Others: r.cfg.Others, Log: r.cfg.Logs.Logger("kthwd"),
		Settle: settle + time.Second,
		Share:  r.cfg.Shared.Record,
	})
}

// newKeys makes what gives the API server the keys of service account tokens.
func (r *Rotations) newKeys() *tokenrotation.Keys {
	api := r.cfg.Args[program.APIServer]
	return tokenrotation.NewKeys(tokenrotation.KeysConfig{
		Accepted: program.Values(api, "service-account-key-file"), Signing: program.Value(api, "service-account-signing-key-file"),
		Loaded: func() {
			r.cfg.Machine.Accept(r.layout.Cert(pki.NameServiceAccount))
			r.cfg.Machine.Accept(r.layout.Key(pki.NameServiceAccount))
			if server := r.cfg.Etcd.Running(); server != nil { // tokens of a dropped key are named from now on
				r.cfg.Refused.Record(context.Background(), server)
			}
		},
	})
}

// newTokens makes what rotates the key of service account tokens.
func (r *Rotations) newTokens() *tokenrotation.Rotation {
	life, _ := time.ParseDuration(program.Value(r.cfg.Args[program.APIServer], "service-account-max-token-expiration")) // upstream has parsed it before
	return tokenrotation.New(tokenrotation.Config{
		Name: r.cfg.Controller.Name, Layout: r.layout, Etcd: r.cfg.Etcd, Keys: r.Keys, Others: r.cfg.Others, Tokens: r.cfg.Refused,
		Log: r.cfg.Logs.Logger("kthwd"), Cannot: r.tokenKeyElsewhere(), Life: life,
		NewTerm: func(ctx context.Context) error {
			return newTerm(ctx, program.ControllerManager, r.cfg.Manager, "until the next term, which signs with another key")
		},
		Reseal: func(ctx context.Context, client *clientv3.Client) error {
			errs := []error{r.cfg.Members.Reseal(ctx, client), r.cfg.Mover.Reseal(ctx, client), r.encryption.Reseal(ctx, client)}
			for _, ca := range r.cas {
				errs = append(errs, ca.Reseal(ctx, client))
			}
			return errors.Join(errs...)
		},
		Share: r.cfg.Shared.Record,
	})
}

// tokenKeyElsewhere says which flag of the user's keeps kthwd from rotating the key of tokens; nil
// for none.
func (r *Rotations) tokenKeyElsewhere() error {
	cert, key := r.layout.Cert(pki.NameServiceAccount), r.layout.Key(pki.NameServiceAccount)
	for _, f := range []struct {
		program, key, want string
		optional           bool
	}{
		{program.APIServer, "service-account-key-file", cert, false},
		{program.APIServer, "service-account-signing-key-file", key, false},
		{program.ControllerManager, "service-account-private-key-file", key, true},
	} {
		values := program.Values(r.cfg.Args[f.program], f.key)
		if slices.Contains(values, f.want) || f.optional && len(values) == 0 {
			continue
		}
		return advice.With(fmt.Errorf("its %s does not have %s as --%s", f.program, f.want, f.key), "leave that flag to kthwd, or rotate the key by hand")
	}
	return nil
}
