// The oidc server is a small OpenID Connect provider for tests: the example server of zitadel/oidc, with its users in
// memory. The example itself listens on all interfaces, and its access tokens are no JWTs. This one listens on
// loopback, and its access tokens are JWTs.
//
//	oidcop version         prints the version of zitadel/oidc
//	oidcop PORT            serves http://127.0.0.1:PORT/, the issuer
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// version is set when the program is built.
var version = "unknown"

// redirect is where a browser is sent after a log-in; nobody listens there.
const redirect = "http://127.0.0.1:9/back"

// store is the example's storage, whose clients get JWTs as access tokens.
type store struct{ *storage.Storage }

// client is a client whose access tokens are JWTs.
type client struct{ op.Client }

// AccessTokenType returns the type of the client's access tokens.
func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

// GetClientByClientID returns a client, or an error where there is none of this identifier.
func (s store) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	found, err := s.Storage.GetClientByClientID(ctx, id)
	if err != nil {
		return nil, err
	}
	return client{found}, nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: oidcop version | PORT")
		os.Exit(2)
	}
	if os.Args[1] == "version" {
		fmt.Println(version)
		return
	}
	address := "127.0.0.1:" + os.Args[1]
	issuer := "http://" + address + "/"
	storage.RegisterClients(storage.NativeClient("chat", redirect))
	users := storage.NewUserStore(issuer)
	router := exampleop.SetupServer(issuer, store{storage.NewStorage(users)}, nil, false)
	fmt.Fprintln(os.Stderr, http.ListenAndServe(address, router))
	os.Exit(1)
}
