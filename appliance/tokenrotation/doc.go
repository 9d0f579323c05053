// Package tokenrotation changes the key pair of service account tokens while the controllers
// serve.
//
//	keys := tokenrotation.NewKeys(tokenrotation.KeysConfig{…})
//	keys.Load()                  // by the API server, before it is built, which uses Current from then on
//	r := tokenrotation.New(tokenrotation.Config{Keys: keys, Others: others, …})
//	go r.Run(ctx)
//
// Upstream's API server reads both files at its start only. Keys takes their place: it gives the
// API server the keys of files that have changed, without a restart.
//
// A rotation passes through the stages of Stage. The new key is published first: every controller
// accepts its tokens, and shows it to those who verify tokens elsewhere. Then it signs. The old one
// is accepted until a person has it dropped, and each controller names the accounts that still use it.
// A stage ends when every controller confirms it, so no controller ever refuses a token that
// another one has made.
//
// The state is below /kthwd/service-account in etcd, without any key, and sealed with each key that
// its writer has: the seals of a cluster are derived from this very key pair, see pki.SharedSecrets.
// The new private key travels from controller to controller, over the connections of package
// others. Before the old key is dropped, Config.Reseal gives every seal in etcd the new one.
//
// The controller that holds the right to act carries the rotation on, see package stages; resume on any
// controller that has the new key continues it.
package tokenrotation
