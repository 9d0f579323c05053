package appliance

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/encryption"
	"kthwd/appliance/etcd"
	"kthwd/appliance/membership"
	"kthwd/appliance/program"
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

// shared are the files that all controllers share.
func (p *prepared) shared() membership.SharedFiles {
	return membership.SharedFiles{Layout: p.layout, InUse: p.usesShared, Replaced: p.machine.Replaced}
}
