package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption"
	"kthwd/appliance/etcd"
	"kthwd/appliance/lease"
	"kthwd/appliance/membership"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/tokenrotation"
)

// longestRequest is upstream's default of the API server's --request-timeout.
const longestRequest = time.Minute

// newGate makes what gives the API server its encryption configuration.
func (p *prepared) newGate(member *etcd.Member) *encryption.Gate {
	api := p.args[program.APIServer]
	return encryption.NewGate(encryption.GateConfig{
		File: program.Value(api, "encryption-provider-config"), Prefix: p.storagePrefix(), Etcd: member,
		Reload: program.Value(api, "encryption-provider-config-automatic-reload") == "true",
		Log:    p.o.Logs.Logger(program.APIServer), Loaded: func(path string) { p.machine.Accept(path) },
		Edited: func(path string) { p.useEdited(member, path) },
	})
}

// useEdited makes known that the API server uses an encryption configuration that was edited by
// hand. The cluster must know the keys before the old one is taken out, or no controller could
// start again.
func (p *prepared) useEdited(member *etcd.Member, path string) {
	p.machine.Proven(path)
	server := member.Running()
	if server == nil {
		return
	}
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), longestRequest)
	defer cancel()
	shared := p.shared()
	if err := shared.Record(ctx, client, path, false); err != nil {
		p.log.Warn("the keys in an edited file are not known to the cluster: restart kthwd before you take an old one out", "file", path, "err", err)
	}
}

// newRotation makes what rotates the encryption key.
func (p *prepared) newRotation(member *etcd.Member) *encryption.Rotation {
	settle := longestRequest
	if d, err := time.ParseDuration(program.Value(p.args[program.APIServer], "request-timeout")); err == nil && d > 0 {
		settle = d
	}
	return encryption.New(encryption.Config{
		Name: p.cfg.Name, Layout: p.layout, Etcd: member, Gate: p.gate, Others: p.others, Log: p.o.Logs.Logger("kthwd"),
		Settle: settle + time.Second,
		Share: func(ctx context.Context, client *clientv3.Client, path string, alone bool) error {
			shared := p.shared()
			return shared.Record(ctx, client, path, alone)
		},
	})
}

// newLiveTokenKeys makes what gives the API server the keys of service account tokens.
func (p *prepared) newLiveTokenKeys(member *etcd.Member) *tokenrotation.Keys {
	api := p.args[program.APIServer]
	return tokenrotation.NewKeys(tokenrotation.KeysConfig{
		Accepted: program.Values(api, "service-account-key-file"), Signing: program.Value(api, "service-account-signing-key-file"),
		Loaded: func() {
			p.machine.Accept(p.layout.Cert(pki.NameServiceAccount))
			p.machine.Accept(p.layout.Key(pki.NameServiceAccount))
			if server := member.Running(); server != nil { // tokens of a dropped key are named from now on
				p.tokens.Record(context.Background(), server)
			}
		},
	})
}

// newTokenRotation makes what rotates the key of service account tokens.
func (p *prepared) newTokenRotation(member *etcd.Member, members *membership.Members, manager *lease.Pause) *tokenrotation.Rotation {
	life, _ := time.ParseDuration(program.Value(p.args[program.APIServer], "service-account-max-token-expiration")) // upstream has parsed it before
	return tokenrotation.New(tokenrotation.Config{
		Name: p.cfg.Name, Layout: p.layout, Etcd: member, Keys: p.tokenKeys, Others: p.others, Tokens: p.tokens,
		Log: p.o.Logs.Logger("kthwd"), Cannot: p.tokenKeyElsewhere(), Life: life,
		NewTerm: func(ctx context.Context) error {
			return newTerm(ctx, program.ControllerManager, manager, "until the next term, which signs with another key")
		},
		Reseal: func(ctx context.Context, client *clientv3.Client) error {
			errs := []error{members.Reseal(ctx, client), p.mover.Reseal(ctx, client), p.rotation.Reseal(ctx, client)}
			for _, r := range p.caRotations {
				errs = append(errs, r.Reseal(ctx, client))
			}
			return errors.Join(errs...)
		},
		Share: func(ctx context.Context, client *clientv3.Client, path string, alone bool) error {
			shared := p.shared()
			return shared.Record(ctx, client, path, alone)
		},
	})
}

// tokenKeyElsewhere says which flag of the user's keeps kthwd from rotating the key of tokens; nil
// for none.
func (p *prepared) tokenKeyElsewhere() error {
	cert, key := p.layout.Cert(pki.NameServiceAccount), p.layout.Key(pki.NameServiceAccount)
	for _, f := range []struct {
		program, key, want string
		optional           bool
	}{
		{program.APIServer, "service-account-key-file", cert, false},
		{program.APIServer, "service-account-signing-key-file", key, false},
		{program.ControllerManager, "service-account-private-key-file", key, true},
	} {
		values := program.Values(p.args[f.program], f.key)
		if slices.Contains(values, f.want) || f.optional && len(values) == 0 {
			continue
		}
		return advice.With(fmt.Errorf("its %s does not have %s as --%s", f.program, f.want, f.key), "leave that flag to kthwd, or rotate the key by hand")
	}
	return nil
}

// shared are the files that all controllers share.
func (p *prepared) shared() membership.SharedFiles {
	return membership.SharedFiles{Layout: p.layout, InUse: p.usesShared, Replaced: p.machine.Replaced}
}
